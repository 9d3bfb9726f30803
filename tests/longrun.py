"""How many trials a test makes: a few in each run, as many as its promise was tested with under RESTQ_TEST_LONG=1.

RESTQ_TRIALS=<n> says how many, and RESTQ_SEED=<n> with which the first begins; the next ones follow.
"""

from __future__ import annotations

import os

# Read now: while tests run, no variable of restq is set.
LONG = os.environ.get("RESTQ_TEST_LONG") == "1"
_TRIALS = os.environ.get("RESTQ_TRIALS")
_SEED = int(os.environ.get("RESTQ_SEED", "1"))


def trials(few: int, many: int) -> int:
    """How many trials to make."""
    return int(_TRIALS or (many if LONG else few))


def seeds(few: int, many: int) -> range:
    """The seeds of so many trials."""
    return range(_SEED, _SEED + trials(few, many))

"""The hot paths whose instructions `bench.regress` counts, from the realm outwards. No case waits for anything."""

from __future__ import annotations

from bench import hot_realm
from bench.callgrind import Case

CASES: dict[str, Case] = {**hot_realm.CASES}

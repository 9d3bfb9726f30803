"""What is to be reached: verdicts from figures, and one small run of all that is measured for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_rig import figures_of

from bench.target_rows import ROWS, Sizes
from bench.targets import TARGETS, Target, others, table, verdicts

SMALL = (
    "--jobs 2000 --few 100 --big 3000 --small 1000 --pulls 50 --batches 4 --large-jobs 400 --waiters 20"
    " --idle-seconds 0.2"
)


@pytest.mark.parametrize(
    ("target", "reached", "missed"),
    [(Target("x", "y", "z", 2.0), 2.0, 2.1), (Target("x", "y", "z", 2.0, is_least=True), 2.0, 1.9)],
)
def test_reached_at_the_bound_and_not_beyond_it(target: Target, reached: float, missed: float) -> None:
    assert target.is_reached(reached)
    assert not target.is_reached(missed)


def test_verdicts_of_runs_judge_the_median_and_name_the_sizes() -> None:
    result = {"clear": {"p99_ms": (10.0, 51.0, 60.0), "max_ms": (70.0, 70.0, 70.0)}}
    (verdict,) = verdicts(result, Sizes(jobs=2_000))
    assert verdict == {
        "row": "request to one realm while another clears 2,000, p99: ms",
        "bound": "at most 50",
        "median": 51.0,
        "lowest": 10.0,
        "highest": 60.0,
        "reached": False,
    }
    assert others(result) == {"clear": {"max_ms": (70.0, 70.0, 70.0)}}
    assert table([verdict]).splitlines()[1].split()[-5:] == ["50", "51", "10", "60", "no"]


def test_targets_of_small_sizes_measure_every_row(tmp_path: Path) -> None:
    found, said = figures_of("bench.targets", SMALL, tmp_path)
    assert set(found["runs"][0]) == set(ROWS)
    assert len(found["targets"]) == len(TARGETS)
    assert all(name in said for name in ("2,000 leased against 100", "two shards against one"))
    ratios = [value for row in found["runs"][0].values() for name, value in row.items() if name.endswith("_ratio")]
    assert len(ratios) == 7
    assert all(ratio > 0 for ratio in ratios)

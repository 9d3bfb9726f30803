"""The load generator: its arithmetic, and one small run of all that it measures over a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_rig import figures_of, said_by

from bench.report import percentiles, spread, table
from bench.workload import Workload


def test_percentiles_of_thousand_latencies_are_measured_ones() -> None:
    found = percentiles([number / 1e3 for number in range(1, 1001)])
    assert found == pytest.approx({"p50_ms": 500, "p99_ms": 990, "p99.9_ms": 999, "max_ms": 1000})


def test_percentiles_of_one_latency_are_that_one() -> None:
    assert set(percentiles([0.25]).values()) == {250.0}


def test_spread_of_three_runs_gives_lowest_median_highest() -> None:
    runs = [{"bulk add": {"jobs_per_s": rate}} for rate in (3.0, 1.0, 2.0)]
    assert spread(runs) == {"bulk add": {"jobs_per_s": (1.0, 2.0, 3.0)}}


def test_table_of_uneven_cells_aligns_columns() -> None:
    assert table([["phase", "n"], ["a", "1,000"]]) == "phase      n\na      1,000"


@pytest.mark.parametrize("hashed_ids", [True, False])
def test_adds_of_uneven_batches_hold_each_job_once(hashed_ids: bool) -> None:
    workload = Workload(jobs=25, batch=10, realms=2, hashed_ids=hashed_ids)
    pulled = []
    for realm, request in workload.adds():
        jobs = json.loads(request.partition(b"\r\n\r\n")[2])["jobs"]
        assert all(len(json.dumps(job["data"])) == workload.data_bytes for job in jobs)
        pulled.append((realm, [job["job_id"] for job in jobs]))
    assert [(realm, len(job_ids)) for realm, job_ids in pulled] == [("load-0", 10), ("load-1", 10), ("load-0", 5)]
    workload.check_pulled(pulled)


def test_load_of_few_jobs_measures_every_phase(tmp_path: Path) -> None:
    sizes = "--jobs 2500 --realms 2 --empty-pulls 20 --single-jobs 50 --single-connections 4"
    figures, _ = figures_of("bench.load", sizes, tmp_path)
    phases = figures["runs"][0]
    assert list(phases) == [
        "memory, empty",
        "bulk add",
        "memory, all ready",
        "bulk pull",
        "memory, all leased",
        "pull that finds nothing",
        "restart after kill -9",
        "restart after SIGTERM",
        "memory, restarted",
        "bulk remove",
        "single add",
        "single pull",
        "single remove",
    ]
    assert phases["bulk pull"]["jobs_per_s"] > 0
    assert phases["memory, all leased"]["shards_rss_MiB"] > 1


def test_life_of_few_jobs_measures_every_scenario(tmp_path: Path) -> None:
    sizes = "--jobs 1500 --pulls 10 --max-leased 3 --waiters 10 --idle-seconds 0.1"
    said = said_by("bench.life", sizes, tmp_path)
    assert all(f"\n{name}: " in said for name in ("leased", "held", "blocked", "waiters"))

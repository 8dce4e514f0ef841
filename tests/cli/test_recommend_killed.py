"""A worker that is killed while it scores a partition."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest
from small_run import make_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """Return the folder of a run."""
    return str(make_runs(tmp_path_factory.mktemp("runs"), run=[]) / "run")


def kill_whoever_writes(name: str) -> threading.Thread:
    """Kill with SIGKILL the worker that is the first to write a partition's output."""
    path = Path("out", name).absolute()

    def watch() -> None:
        for _ in range(6000):
            for partial in path.parent.glob(f".{path.name}.*.partial"):
                if (process := partial.name.split(".")[-2]).isdecimal():
                    os.kill(int(process), signal.SIGKILL)
                    return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def large_partitions() -> None:
    """Write partitions of which a worker has something to do for a while."""
    Path("in/more").mkdir(parents=True)
    for name in ("a", "b", "more/c", "more/d"):
        query = f"SELECT '{name} ' || i AS \"user\", [format('item{{:05d}}', i % 200)] AS items FROM range(8000) t(i)"
        duckdb.sql(f"COPY ({query}) TO 'in/{name}.parquet' (FORMAT parquet)")


def check_a_killed_worker(ftkit, run, *arguments: str) -> None:
    large_partitions()
    killer = kill_whoever_writes("more/c.parquet")
    done = ftkit("recommend", run, "--input", "in", "--output", "out", "--top", "2", "--batch-size", "64", *arguments)
    killer.join(5)
    assert done.code == 0, done.err
    assert done.err.count("its worker was lost") == 1
    assert "partition more/c.parquet: its worker was lost" in done.err
    assert done.out.startswith("wrote 32,000 users × 2 items to out in 4 partitions; ")
    users = duckdb.sql("SELECT count(*), count(DISTINCT \"user\") FROM 'out/**/*.parquet'").fetchall()
    assert users == [(64_000, 32_000)]
    assert list(Path("out").rglob("*.partial")) == []


@pytest.mark.slow
def test_a_killed_process_costs_its_own_partition_and_that_is_done_again(ftkit, run):
    check_a_killed_worker(ftkit, run, "--workers", "2")


@pytest.mark.slow
def test_a_killed_actor_costs_its_own_partition_and_that_is_done_again(ftkit, run):
    ray = pytest.importorskip("ray")
    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=paths)
    try:
        check_a_killed_worker(ftkit, run, "--ray", "local")
    finally:
        ray.shutdown()

"""Score a folder of partitions with one worker and with several, and print how throughput grows.

Run as a program: ``python tests/scaling/partitions.py --folder /big/disk --users 20000 --workers 1 2``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import duckdb

FTKIT = (sys.executable, "-c", "from finetune_kit.cli.main import main; main()")
MODEL = ("--backbone", "nextitnet", "--max-length", "50", "--set", "backbone.dim=64", "--set", "backbone.num_blocks=8")
PARTITIONS, TIMES = 8, 3


def ftkit(folder: Path, *arguments: object) -> str:
    """Return what a command prints, run with one thread in each process."""
    done = subprocess.run(
        [*FTKIT, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def prepare(folder: Path, users: int) -> None:
    """Make a run, and partitions of so many users with 20 to 60 events each, one row per user."""
    ftkit(folder, "data", "prepare", "synthetic", "--users", 2000, "--output", "data")
    training = ("--strategy", "finetune-all", "--epochs", 1, "--set", "pretrain.epochs=1")
    ftkit(folder, "run", "--data", "data", *MODEL, *training, "--output", "run")
    items = duckdb.sql(f"SELECT count(*) FROM '{folder}/data/source_items.parquet'").fetchall()[0][0]
    (folder / "histories").mkdir()
    for number in range(PARTITIONS):
        first = number * users
        duckdb.sql(
            f"""COPY (SELECT format('new {{}}', i) AS "user",
            [format('item{{:05d}}', hash(i, j) % {items}) for j in range(20 + i % 41)] AS items
            FROM range({first}, {first + users}) rows(i))
            TO '{folder}/histories/part-{number}.parquet' (FORMAT parquet)"""
        )


def measure(folder: Path, workers: int) -> tuple[float, float]:
    """Return users per second, from the first partition's begin to the last one's end, and all seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "out", ignore_errors=True)
    given = ("--input", "histories", "--output", "out", "--workers", workers, "--json")
    rate = json.loads(ftkit(folder, "recommend", "run", *given))["users_per_second"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return rate, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure in turns, so that what else the machine does meets all alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--users", type=int, default=20_000, help="of each partition")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    prepare(given.folder, given.users)
    found: dict[int, list[tuple[float, float]]] = {workers: [] for workers in given.workers}
    for _ in range(TIMES):
        for workers, measured in found.items():
            measured.append(measure(given.folder, workers))
    rates = {workers: statistics.median(rate for rate, _ in measured) for workers, measured in found.items()}
    for workers, measured in found.items():
        every = ", ".join(f"{rate:,.0f}" for rate, _ in measured)
        busy = statistics.median(seconds for _, seconds in measured)
        ratio = rates[workers] / rates[given.workers[0]]
        print(f"workers {workers}: {rates[workers]:,.0f} users/s (of {every}), {ratio:.2f} times; CPU {busy:.1f} s")


if __name__ == "__main__":
    main()

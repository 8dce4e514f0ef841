"""Prepare a made-up log of any size; print seconds and peak memory.

python tests/benchmarks/bench_prepare.py --events 5000000 --users 1000000 --items 50000
python tests/benchmarks/bench_prepare.py --events 60000000 --users 2000000 --memory-limit 500MB
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

PREPARE = """
import sys, json
from pathlib import Path
from ftkit_datasets.events import Events, EventsOptions
Events(EventsOptions(**json.loads(sys.argv[1]))).prepare(Path(sys.argv[2]))
"""


def write_log(folder: Path, events: int, users: int, items: int, suffix: str) -> None:
    """Write source and target events, unsorted, with text ids and popular items drawn more often."""
    target = min(users * 2, events)
    for name, rows, catalogue in (("source", events, items), ("target", target, max(items // 10, 10))):
        duckdb.sql(
            f"""COPY (SELECT 'user-' || (hash(i) % {users}) AS user,
                '{name}-' || floor({catalogue} * pow((hash(i + {events}) % 1000000) / 1e6, 3))::INT AS item,
                1600000000 + (hash(i + 2 * {events}) % 100000000) AS time FROM range({rows}) r(i))
            TO '{folder / name}{suffix}'"""
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--memory-limit", default=None)
    parser.add_argument("--suffix", choices=(".parquet", ".csv"), default=".parquet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_log(folder, arguments.events, arguments.users, arguments.items, arguments.suffix)
        options = {name: f"{folder / name}{arguments.suffix}" for name in ("source", "target")}
        options |= {"on_bad": "drop", "max_target": "5"}
        if arguments.memory_limit:
            options["memory_limit"] = arguments.memory_limit
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", PREPARE, json.dumps(options), str(folder / "out")], check=True)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        counts = json.loads((folder / "out" / "dataset.json").read_text())["counts"]
        print(f"{seconds:.1f} s, peak {peak:.2f} GiB, {counts}")


if __name__ == "__main__":
    main()

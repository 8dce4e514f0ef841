"""Prepare, pre-train on, fine-tune on and score a log of many events, and print what each took.

Run as a program: ``python tests/scaling/many_events.py --events 30000000 --folder /big/disk --limit 4096``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
from event_log import EventLog
from measured import Measured, measure

FTKIT = (sys.executable, "-c", "from finetune_kit.cli.main import main; main()")
MODEL = ("--backbone", "nextitnet", "--max-length", "20", "--set", "backbone.dim=64", "--set", "backbone.num_blocks=4")
SPARING = (
    "loss=sampled-softmax",
    "optimizer=lazy-adam",
    "windows=latest",
    "epochs=1",
    "patience=0",
    "batch_size=512",
    "num_negatives=512",
)
"""Pre-training whose step costs the same whatever the catalogue, on each user's latest events."""
TUNING = ("epochs=1", "patience=0", "optimizer=lazy-adam", "batch_size=256")


def commands(folder: Path, events: int) -> Iterator[tuple[str, list[str | Path]]]:
    """Yield a name and a command for each stage, in order; all they write is below the folder."""
    log, dataset, run = folder / "log", folder / "dataset", folder / "run"
    valid = min(0.05, 1000 / EventLog.of(events).users)
    sparing = [*SPARING, f"valid_share={valid:g}"]
    training = [*MODEL, *_sets("pretrain", sparing), "--data", dataset]
    yield "write", [sys.executable, Path(__file__).resolve(), "--events", str(events), "--folder", folder, "--write"]
    prepare = ["data", "prepare", "events", log / "source", "--target", log / "target", "--keep-source-only"]
    yield "prepare", [*FTKIT, *prepare, "--output", dataset]
    yield "pretrain", [*FTKIT, "pretrain", *training, "--output", folder / "pretrained"]
    tuning = ["--strategy", "uaf-hard", *_sets("finetune", TUNING), "--output", run]  # finds the pre-trained beside it
    yield "run", [*FTKIT, "run", *training, *tuning]
    yield (
        "recommend",
        [*FTKIT, "recommend", run, "--input", log / "histories.parquet", "--output", folder / "top.parquet"],
    )


def _sets(section: str, assignments: list[str] | tuple[str, ...]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", f"{section}.{assignment}")]


def go_through(folder: Path, events: int, limit: int | None) -> Iterator[tuple[str, Measured]]:
    """Run all stages; yield what each took, and stop after one that fails."""
    for name, command in commands(folder, events):
        measured = measure(command, folder / f"{name}.log", None if name == "write" else limit)
        yield name, measured
        if measured.code:
            return


def main() -> None:
    """Print a table of the stages, or write the log alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=30_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="MiB that each process may ask for")
    parser.add_argument("--write", action="store_true", help="write the log and do nothing else")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.write:
        EventLog.of(arguments.events).write(arguments.folder / "log")
        return
    print("| stage | seconds | peak memory, MiB | last line |\n| --- | --- | --- | --- |", flush=True)
    for name, measured in go_through(arguments.folder, arguments.events, arguments.limit):
        last = measured.output.strip().rpartition("\n")[2]
        print(f"| {name} | {measured.seconds:.0f} | {measured.peak:,.0f} | {last} |", flush=True)
        if measured.code:
            sys.exit(f"{name} ended with {measured.code}; see {arguments.folder / name}.log")


if __name__ == "__main__":
    main()

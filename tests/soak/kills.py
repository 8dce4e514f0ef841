"""Kills real `ftkit` processes at random moments, goes on with --resume, and compares with an undisturbed run.

A run may die by SIGKILL, SIGTERM, SIGINT, or on a full disk (a limit on the size of files), as often as it likes. In
the end its weights, its numbers without times, and its log must be those of the run that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_kit.files import read_table

FTKIT = [sys.executable, "-c", "from finetune_kit.cli.main import main; main()"]
SIZES = [
    *("--set", "data.users=800"),
    *("--set", "data.max_length=12"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=2"),
    *("--set", "pretrain.batch_size=8"),
    *("--set", "pretrain.epochs=4"),
    *("--set", "run.save_minutes=0.003"),
]
"""A run of a few seconds that saves within its epochs some times a second."""
FINETUNING = ["--epochs", "4", "--batch-size", "4"]
LAZY = ["--set", "pretrain.optimizer=lazy-adam", "--set", "pretrain.loss=sampled-softmax"]
LAZY_TOO = [*LAZY, "--set", "finetune.optimizer=lazy-adam"]
COMMANDS: dict[str, list[str]] = {
    "uaf-hard": ["run", "--strategy", "uaf-hard", *FINETUNING],
    "uaf-rl, lazy-adam": [
        *("run", "--strategy", "uaf-rl", "--set", "strategy.curriculum_epochs=2", *FINETUNING, *LAZY_TOO)
    ],
    "gradual-unfreezing": ["run", "--strategy", "gradual-unfreezing", *FINETUNING, "--set", "finetune.patience=1"],
    "lp-ft, lazy-adam": ["run", "--strategy", "lp-ft", "--set", "strategy.probe_epochs=3", *FINETUNING, *LAZY_TOO],
    "mtl": ["run", "--strategy", "mtl", *FINETUNING],
    "finetune-cls on sasrec": ["run", "--strategy", "finetune-cls", "--backbone", "sasrec", *FINETUNING],
    "pretrain bert4rec": ["pretrain", "--backbone", "bert4rec"],
    "compare": [
        *("compare", "--strategies", "finetune-cls,uaf-hard", "--seeds", "0,1", "--no-report", "--epochs", "2"),
        *("--batch-size", "8"),
    ],
}
"""Command lines without their --output: strategies with noise and schedules, both optimizers, all that can go on."""
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
WAYS = {"SIGKILL": 3, "SIGTERM": 2, "SIGINT": 2, "full disk": 1}
"""How a command may end, and how often it does."""
WITHIN = "going on in epoch"
LARGEST_FILE = 30_000
"""Bytes that a file may have on the disk that is full."""
TIMES = ("seconds", "instances_per_second", "time", "folder")


@dataclass
class Undisturbed:
    """What a command left behind that ran alone.

    Args:
        found: Its results.
        seconds: How long it took.
    """

    found: dict[str, Any]
    seconds: float


def soak(deadline: float, random: random.Random, folder: Path) -> dict[str, int]:
    """Kill until `time.monotonic` reaches the deadline, at least one command to its end; return what was counted."""
    counts: Counter[str] = Counter()
    undisturbed: dict[str, Undisturbed] = {}
    names = list(COMMANDS)
    random.shuffle(names)
    while True:
        for name in names:
            if name not in undisturbed:
                undisturbed[name] = run_undisturbed(name, folder)
            counts += run_killed(name, undisturbed[name], random, folder, most_kills=random.randint(4, 8))
            if time.monotonic() >= deadline:
                return dict(counts)


def run_undisturbed(name: str, folder: Path) -> Undisturbed:
    """Return what a command leaves behind that nobody kills."""
    root, started = folder / "undisturbed", time.monotonic()
    start(name, root, folder)
    found = results(root)
    shutil.rmtree(root)
    return Undisturbed(found, time.monotonic() - started)


def run_killed(
    name: str, undisturbed: Undisturbed, random: random.Random, folder: Path, most_kills: int
) -> Counter[str]:
    """Kill a command up to so many times, going on each time; compare what it leaves behind; return the counts."""
    root, counts, resume, told = folder / "killed", Counter[str](), False, []
    for _ in range(most_kills):
        (way,) = random.choices(list(WAYS), list(WAYS.values()))
        moment = random.uniform(0.15, 0.7) * undisturbed.seconds
        told.append(f"{way} after {moment:.2f} s")
        said = kill(name, root, folder, way, moment, resume)
        resume = True
        if said is None:
            break
        counts[way] += 1
        counts["went on within an epoch"] += said.count(WITHIN)
    said = start(name, root, folder, "--resume")
    counts["went on within an epoch"] += said.count(WITHIN)
    found = results(root)
    assert found == undisturbed.found, f"{name}: {'; '.join(told)}: {_first_difference(undisturbed.found, found)}"
    shutil.rmtree(root)
    counts["kills survived"] += sum(counts[way] for way in WAYS)
    counts["runs compared"] += 1
    return counts


def kill(name: str, root: Path, folder: Path, way: str, moment: float, resume: bool) -> str | None:
    """Start a command and end it after ``moment`` seconds; return what it said on stderr, or None if it was faster.

    What it says when it is asked to stop is looked at too: one last line, with the command to go on with.
    """
    is_full = way == "full disk"
    process = _process(name, root, folder, ["--resume"] if resume else [], LARGEST_FILE if is_full else None)
    try:
        _, said = process.communicate(timeout=None if is_full else moment)
    except subprocess.TimeoutExpired:
        process.send_signal(SIGNALS[way])
        _, said = process.communicate(timeout=60)
    code, last = process.returncode, (said.splitlines() or [""])[-1]
    if code == 0:
        return None
    if is_full:
        assert code == 2, f"{name}, {way}: exit {code}: {said}"
        assert "can't be written: File too large; make room, then go on with: ftkit " in last, said
        return said
    number = int(SIGNALS[way])
    if code == -number:  # by the kernel, or before Python was told what to do
        return said
    assert code == 128 + number, f"{name}, {way} after {moment} s: exit {code}: {said}"
    assert "go on with: ftkit " in last, said
    assert last.endswith("--resume"), said
    assert "Traceback" not in said, said
    return said


def start(name: str, root: Path, folder: Path, *more: str) -> str:
    """Run a command to its end; return what it said on stderr."""
    process = _process(name, root, folder, list(more))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, f"{name}: exit {process.returncode}: {said}"
    return said


def _process(
    name: str, root: Path, folder: Path, more: list[str], largest_file: int | None = None
) -> subprocess.Popen[str]:
    output = root if COMMANDS[name][0] == "pretrain" else root / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FTKIT_CACHE": str(folder / "cache")}

    def limit() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where this was started
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        [*FTKIT, *COMMANDS[name], *SIZES, "--output", str(output), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=limit,
    )


def results(root: Path) -> dict[str, Any]:
    """Return what stands in all run folders below a folder: weights, numbers, tables, epochs in the log; no times."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.name == "model.safetensors":
            found[name] = path.read_bytes()
        elif path.name in ("metrics.json", "model.json"):
            found[name] = _without_times(json.loads(path.read_text()))
        elif path.suffix == ".parquet":
            found[name] = {key: column.tolist() for key, column in read_table(path).items() if key not in TIMES}
        elif path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [_without_times(line) for line in lines if line["event"] != "start"]
        elif path.name in ("tables.md", "table.csv"):
            found[name] = path.name
        assert not path.name.startswith(".") or path.name.endswith(".partial"), path
    return found


def _without_times(value: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key not in TIMES}


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            return f"{name}: {str(one.get(name))[:300]} became {str(other.get(name))[:300]}"
    return "nothing differs"

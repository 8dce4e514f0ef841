"""Draws small configurations, and makes each run again: in this process, in another, and where it must not matter.

What must not matter is the batch size of evaluation, which changes no weight, and what test instances ask for, which
changes nothing but their own numbers.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent.parent))  # for what tests share, where this is no part of the suite

from finetune_kit.config import resolve_config, to_toml
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.errors import FinetuneKitError
from finetune_kit.plugins import installed
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions
from leakage import differing, trace, with_other_answers

NUM_DATASETS = 3
TRAINED = ("base", "losses")
"""What of a run the batch size of evaluation has no part in; metrics may round otherwise."""

Sections = dict[str, dict[str, Any]]


def soak(deadline: float, random: random.Random, folder: Path) -> dict[str, int]:
    """Go on until `time.monotonic` reaches the deadline, at least one round; return what was counted.

    Raises:
        AssertionError: When a run made again is another run.
    """
    counts: Counter[str] = Counter({"seeds compared": 0})
    while not counts["seeds compared"] or time.monotonic() < deadline:
        sections = draw(random, folder)
        try:
            compare(sections, folder / f"round{counts.total()}", counts, elsewhere=random.random() < 0.3)
        except FinetuneKitError as error:
            assert is_refusal(error), f"{sections}: {error}"
            counts["configurations refused"] += 1
    return dict(counts)


def is_refusal(error: FinetuneKitError) -> bool:
    """Return whether an error says, in a line, that what was drawn doesn't go together or is too little."""
    return "\n" not in str(error) and ";" in str(error)


def draw(random: random.Random, folder: Path) -> Sections:
    """Return the sections of a configuration; its dataset is prepared below the folder."""
    return {
        "run": {
            "strategy": random.choice(sorted(installed().components("strategy"))),
            "backbone": random.choice(sorted(installed().components("backbone"))),
            "data": str(dataset_of(random.randrange(NUM_DATASETS), folder)),
            "task": random.choice(["items", "items", "label:kind"]),
            "seed": random.randrange(1000),
            "device": "cpu",
        },
        "data": {
            "max_length": random.randint(3, 12),
            "split": random.choice(["instance", "user"]),
            "fraction": random.choice([1.0, 0.5]),
        },
        "backbone": {"dim": random.choice([4, 8]), "num_blocks": random.randint(2, 3)},
        "pretrain": {
            "epochs": 1,
            "loss": random.choice(["softmax", "sampled-softmax"]),
            "windows": random.choice(["latest", "all"]),
        },
        "finetune": {
            "epochs": random.randint(1, 3),
            "patience": 0,
            "batch_size": random.choice([7, 32, 256]),
            "learning_rate": 0.01,
            "loss": random.choice(["bpr", "bce", "sampled-softmax", "softmax"]),
            "num_negatives": random.randint(1, 3),
            "batching": random.choice(["users", "instances"]),
            "pooling": random.choice(["last", "mean"]),
            "optimizer": random.choice(["adam", "lazy-adam"]),
            "cache": random.choice(["auto", "off"]),
        },
        "evaluation": {"num_candidates": random.choice([5, 99]), "batch_size": random.choice([1, 16, 512])},
    }


def dataset_of(seed: int, folder: Path) -> Path:
    """Return the folder of made-up users, prepared if it is not there yet."""
    path = folder / f"users{seed}"
    if not path.exists():
        Synthetic(SyntheticOptions(users=60 + 20 * seed, max_length=12, seed=seed)).prepare(path)
    return path


def compare(sections: Sections, folder: Path, counts: Counter[str], *, elsewhere: bool) -> None:
    """Make a run several times over, and assert that it is the same wherever it must be."""
    dataset = for_task(Dataset.open(sections["run"]["data"]), sections["run"]["task"])
    plain = trace(made(sections, dataset), folder / "plain")
    again = trace(made(sections, dataset), folder / "again")
    assert_same(plain, again, sections, "made again")
    test = made(sections, dataset).split.test
    asked = trace(made(sections, with_other_answers(dataset, test)), folder / "asked")
    assert_same(plain, asked, sections, "with other answers in its test part")
    other = {**sections, "evaluation": {**sections["evaluation"], "batch_size": 3}}
    assert_same(plain, trace(made(other, dataset), folder / "three"), sections, "evaluated 3 at a time", TRAINED)
    counts["seeds compared"] += 1
    counts["runs"] += 4
    if elsewhere:
        weights = weights_elsewhere(sections, folder / "elsewhere")
        assert weights == plain["weights"], f"made in another process, other weights: {sections}"
        counts["runs in another process"] += 1


def made(sections: Sections, dataset: Dataset) -> Runner:
    """Return what carries a configuration out."""
    return Runner(resolve_config(sections), dataset, make_fabric("cpu"))


def assert_same(
    one: dict[str, Any], other: dict[str, Any], sections: Sections, how: str, parts: tuple[str, ...] = ()
) -> None:
    """Assert that some parts, or all, of two traces are the same bit for bit."""
    differ = [part for part in differing(one, other) if not parts or part in parts]
    assert not differ, f"{how}, a run has other {', '.join(differ)}: {sections}"


def weights_elsewhere(sections: Sections, folder: Path) -> bytes:
    """Return the weights that a process of its own writes."""
    folder.mkdir(parents=True)
    (folder / "asked.toml").write_text(to_toml(sections), encoding="utf-8")
    command = [sys.executable, "-c", "from finetune_kit.cli.main import main; main()"]
    done = subprocess.run(
        [*command, "run", "--config", str(folder / "asked.toml"), "--output", str(folder / "run")],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{sections}: {done.stderr}"
    return (folder / "run" / "model.safetensors").read_bytes()

"""What the tests of strategies with a schedule share: a small run, whole and interrupted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


class Interrupted(Exception):
    """A crash."""


def small_runner(folder: Path, strategy: str, epochs: int, options: Mapping[str, Any]) -> Runner:
    """Return what runs a strategy on a small dataset, which is made in ``folder`` if it is not there yet."""
    if not folder.exists():
        Synthetic(SyntheticOptions(users=60, max_length=12)).prepare(folder)
    config = {
        "run": {"strategy": strategy},
        "data": {"max_length": 8},
        "backbone": {"dim": 8, "num_blocks": 2},
        "pretrain": {"epochs": 1},
        "finetune": {"epochs": epochs, "batch_size": 32, "learning_rate": 0.01, "weight_decay": 0.01, "patience": 1},
        "strategy": dict(options),
    }
    return Runner(resolve_config(config), Dataset.open(folder), make_fabric("cpu"))


def whole_and_resumed(
    root: Path, strategy: str, epochs: int, crash_in: int, **options: Any
) -> tuple[tuple[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]:
    """Return metrics, without times, and saved weights: of a run, and of one that crashed in an epoch and went on."""
    made = small_runner(root / "data", strategy, epochs, options)
    base = made.pretrain(root)

    def finish(folder: Path) -> tuple[dict[str, Any], bytes]:
        metrics = made.finetune(folder, base)
        times = ("seconds", "instances_per_second")
        kept = {key: value for key, value in metrics.items() if key not in times}
        return kept, (folder / "model.safetensors").read_bytes()

    def crash(tracker: Any, stage: str, values: Mapping[str, float]) -> None:
        if values["epoch"] == crash_in:
            raise Interrupted

    whole = finish(root / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("ftkit_trackers.jsonl.JsonLines.record", crash)
        made.finetune(root / "crashed", base)
    made = small_runner(root / "data", strategy, epochs, options)
    made.resume = True
    return whole, finish(root / "crashed")

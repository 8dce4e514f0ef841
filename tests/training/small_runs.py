"""Runs of seconds on made-up users, for the tests of whole runs."""

from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.plugins import installed
from finetune_kit.progress import Progress
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from matrix import usual_backbone


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def runner(
    dataset: Dataset,
    name: str = "finetune-last1",
    fabric: Fabric | None = None,
    **sections: dict[str, Any],
) -> Runner:
    config = {
        "run": {"strategy": name, "backbone": usual_backbone(name)},
        "data": {"max_length": 8},
        "backbone": {"dim": 8, "num_blocks": 2},
        "pretrain": {"epochs": 1},
        "finetune": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01},
    }
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    return Runner(resolve_config(config), dataset, fabric or make_fabric("cpu"), Told())


def whole_run(made: Runner, root: Path, bases: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Pre-train if the strategy wants it, fine-tune; return the metrics and the run folder."""
    needs = installed().component("strategy", made.config.run.strategy).load().needs_pretrained
    base = made.pretrain(bases or root) if needs else None
    folder = root / made.config.run.strategy
    return made.finetune(folder, base), folder


TIMES = ("seconds", "instances_per_second", "machine")
"""Keys of ``metrics.json`` that tell how and how fast numbers came about."""


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key not in TIMES}

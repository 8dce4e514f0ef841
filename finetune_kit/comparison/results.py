"""The finished runs of a comparison, as tables, tests and pictures read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune_kit.checksums import refuse_changed
from finetune_kit.errors import CheckpointError
from finetune_kit.files import read_table
from finetune_kit.foreign import read_json

LABEL_METRICS = ("accuracy", "f1_macro")
"""Metrics of a profile label; there is no ranking protocol then."""
RANKING_METRICS = ("mrr@5", "hr@5")
"""Metrics of item ranking that tables show first, in the order of the paper's Table 2."""

AGAIN = "delete this folder, the same command trains it again"


class Setting(NamedTuple):
    """A row of a comparison: everything but the seed.

    Args:
        strategy: Name of the strategy.
        variant: What ``--set`` makes of it, e.g. ``"strategy.policy=gru"``; empty where nothing is varied.
        backbone: Name of the backbone.
        fraction: Share of the training instances.
    """

    strategy: str
    variant: str = ""
    backbone: str = "nextitnet"
    fraction: float = 1.0


@dataclass(frozen=True)
class Result:
    """One finished run.

    Args:
        setting: Its row.
        seed: Its seed, which draws the split, the weights and the negatives.
        folder: Its folder.
        metrics: What its ``metrics.json`` says.
    """

    setting: Setting
    seed: int
    folder: Path
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, setting: Setting, seed: int, folder: Path) -> Result:
        """Return the finished run in a folder.

        Raises:
            CheckpointError: When its ``metrics.json`` can't be read; so do the properties below for their files.
        """
        return cls(setting, seed, folder, read_facts(folder / "metrics.json"))

    def refuse_damaged(self) -> None:
        """Raise what would else be raised where the first table is written: a file that is gone, damaged or changed."""
        _ = self.instances, self.history, self.policy
        refuse_changed(self.folder, AGAIN)

    def value(self, metric: str, protocol: str = "", part: str = "test") -> float:
        """Return a metric on ``"test"`` or ``"valid"``; ``protocol`` is empty for profile labels."""
        values = self.metrics[part]
        return values[protocol][metric] if protocol else values[metric]

    @property
    def has_control(self) -> bool:
        """Whether the best single choice of blocks for all users was measured too."""
        return "test" in self.metrics.get("control", {})

    def per_instance(self, metric: str, protocol: str = "", *, control: bool = False) -> np.ndarray:
        """Return what each test instance gives to a metric, ``(instances,)``, in the order of `instances`.

        Means are the metric; ``f1_macro`` alone is no mean over instances and raises ``KeyError``.

        Args:
            metric: Its name.
            protocol: The ranking protocol; empty for profile labels.
            control: Of the best single choice of blocks for all users, instead of the policy's choices.
        """
        prefix = "control_" if control else ""
        if metric == "accuracy":
            return (self.instances["class"] == self.instances[f"{prefix}predicted"]).astype(np.float64)
        name, _, cutoff = metric.partition("@")
        rank = self.instances[f"{prefix}rank_{protocol}"]
        gain = {"hr": np.ones_like(rank), "mrr": 1 / rank, "ndcg": 1 / np.log2(1 + rank)}[name]
        return (rank <= int(cutoff)) * gain

    @cached_property
    def instances(self) -> dict[str, np.ndarray]:
        """Columns of ``instances.parquet``: user, item and ranks, or user, class and predicted class."""
        return _read_table(self.folder / "instances.parquet")

    @cached_property
    def history(self) -> dict[str, np.ndarray]:
        """Columns of ``history.parquet``: epoch, train_loss, validation metrics (``mrr@5`` …), seconds."""
        return _read_table(self.folder / "history.parquet")

    @cached_property
    def policy(self) -> dict[str, np.ndarray] | None:
        """Columns of ``policy.parquet``: user, gate_0 …, probability_0 …; None for strategies without gates."""
        path = self.folder / "policy.parquet"
        return _read_table(path) if path.exists() or "gates" in self.metrics else None

    @property
    def gates(self) -> np.ndarray | None:
        """Gates ``(users, blocks)`` in [0, 1], 1 fine-tuned, in the order of ``policy["user"]``, or None."""
        if self.policy is None:
            return None
        names = sorted((name for name in self.policy if name.startswith("gate_")), key=lambda name: int(name[5:]))
        return np.stack([self.policy[name] for name in names], axis=1)


@dataclass(frozen=True)
class Results:
    """All finished runs of a comparison.

    Args:
        dataset: Name of the dataset.
        task: ``"items"`` or ``"label:NAME"``.
        runs: The runs, in the order of their rows; each row has a run per seed.
        notes: What a reader of the numbers must know: the tuning budget, rows that lack seeds, one line each.
    """

    dataset: str
    task: str
    runs: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> list[Setting]:
        """The rows, in order."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({run.seed for run in self.runs})

    @property
    def protocols(self) -> list[str]:
        """The ranking protocols, or one empty name for profile labels."""
        return list(self.runs[0].metrics["test"]) if self.task == "items" else [""]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that tables show first."""
        return RANKING_METRICS if self.task == "items" else LABEL_METRICS

    def of(self, setting: Setting) -> list[Result]:
        """Return the runs of a row, by seed."""
        return sorted((run for run in self.runs if run.setting == setting), key=lambda run: run.seed)

    def name(self, setting: Setting) -> str:
        """Return how a row is called: the strategy, and of the rest only what differs between rows."""
        return row_name(setting, self.settings)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a run says.

    Raises:
        CheckpointError: When it can't be read.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _read_table(path: Path) -> dict[str, np.ndarray]:
    import duckdb

    try:
        return read_table(path)
    except (OSError, duckdb.Error) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> CheckpointError:
    fault = "can't be read" if path.exists() else "is missing"
    return CheckpointError(f"the run in {str(path.parent)!r} is damaged, its {path.name} {fault}: {AGAIN}")


def row_name(setting: Setting, settings: Iterable[Setting]) -> str:
    """Return how a row among rows is called: the strategy, and of the rest only what differs between them."""
    settings = list(settings)
    parts = [setting.strategy, setting.variant.replace("strategy.", "")]
    if len({other.backbone for other in settings}) > 1:
        parts.append(setting.backbone)
    if len({other.fraction for other in settings}) > 1:
        parts.append(f"{setting.fraction * 100:g}% data")
    return " ".join(part for part in parts if part)

"""Rows 'hard-epoch' and 'cls-epoch': epochs of whole runs, and the share of them in which batches are made."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rows_evaluation import known_items
from sizes import Size, straight_of
from steps import straight_step
from straight import StraightUafHard
from timing import Row, seconds
from torch import Tensor

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.loading import TargetBatches, draw_negatives
from finetune_kit.strategy import Strategy
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner


@dataclass
class Epochs(Runner):
    """A run as `ftkit run` has it; after each epoch and its validation, something else has its turn.

    An epoch of ours is everything: shuffling, batches, steps, validation, keeping the best weights, the checkpoint.
    """

    between: Callable[[Strategy], object] = lambda strategy: None
    seconds: list[float] = field(default_factory=list)

    def validator(self, strategy: Strategy) -> Callable[[], dict[str, float]]:
        """Return the validation, with a clock round epochs; the first epoch is the warm-up and not noted."""
        validate, started = super().validator(strategy), None

        def timed() -> dict[str, float]:
            nonlocal started
            values = validate()
            if len(self.seconds) == self.config.finetune.epochs - 1:  # training is over: the run is being measured
                return values
            if started is not None:
                self.seconds.append(time.perf_counter() - started)
            self.between(strategy)
            started = time.perf_counter()
            return values

        return timed


def hard_epoch(size: Size, dataset: Dataset) -> Row:
    """Time an epoch of uaf-hard."""
    return _epochs("hard-epoch", "uaf-hard", size, dataset)


def cls_epoch(size: Size, dataset: Dataset) -> Row:
    """Time an epoch of finetune-cls, after the first."""
    return _epochs("cls-epoch", "finetune-cls", size, dataset)


def _epochs(name: str, strategy_name: str, size: Size, dataset: Dataset) -> Row:
    config = size.epoch.config(strategy_name, epochs=size.rounds + 1)
    runner = Epochs(config, dataset, make_fabric("cpu"))
    row, steps = Row(name, f"{strategy_name}, epoch and validation on {dataset.name}"), {}

    def turn(strategy: Strategy) -> None:
        if not steps:
            steps["epoch"] = _straight_epoch(runner, strategy)
        row.reference.append(seconds(steps["epoch"]))

    runner.between = turn
    with tempfile.TemporaryDirectory() as folder:
        runner.finetune(Path(folder) / "run", None)
    row.ours, row.reference = runner.seconds, row.reference[1:]
    row.users = len(np.unique(dataset.target.user[runner.split.train]))
    feeding = [seconds(lambda: _make_batches(runner)) for _ in range(size.rounds)]
    row.remarks = {
        "training instances per user": len(runner.split.train) / row.users,
        "share of the epoch spent in making batches": float(np.median(feeding) / np.median(row.ours)),
    }
    return row


def _make_batches(runner: Runner) -> None:
    """Make the batches of an epoch and do nothing with them."""
    options, max_length = runner.config.finetune, runner.config.data.max_length
    batches = TargetBatches(
        runner.dataset, runner.split.train, options.batch_size, max_length, options.num_negatives, options.batching
    )
    for _ in batches.epoch(torch.Generator().manual_seed(0)):
        pass


def _straight_epoch(runner: Runner, strategy: Strategy) -> Callable[[], None]:
    """Return a function that trains a straight epoch, a row per instance, and ranks the validation part."""
    dataset, parts, options = runner.dataset, runner.split, runner.config.finetune
    model, length = straight_of(strategy), runner.config.data.max_length
    batch: list[Tensor] = []
    step = straight_step(model, lambda: model(*batch))

    def epoch() -> None:
        order = parts.train[np.random.permutation(len(parts.train))]
        for instances in _cut(order, options.batch_size):
            batch[:] = _rows(dataset, instances, length)
            if isinstance(model, StraightUafHard):
                batch.append(torch.rand(len(instances), len(model.backbone.blocks), 2))
            step()
        for instances in _cut(parts.valid, options.batch_size):
            sequence, positive, _ = _rows(dataset, instances, length)
            model.ranks(sequence, positive, known_items(dataset, parts.known, instances))

    return epoch


def _cut(instances: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (instances[start : start + size] for start in range(0, len(instances), size))


def _rows(dataset: Dataset, instances: np.ndarray, length: int) -> list[Tensor]:
    """Return sequence ``(rows, length)``, positive and negative ``(rows,)``, a row per instance."""
    positive = torch.from_numpy(dataset.target.item[instances])
    negative = draw_negatives(positive, dataset.num_target_items, 1, torch.default_generator)[:, 0]
    return [torch.from_numpy(dataset.sequences(dataset.target.user[instances], length)), positive, negative]

"""Batches made from a dataset: for fine-tuning, for evaluation, and windows for pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from finetune_kit.data.batch import Batch, Windows
from finetune_kit.processes import here
from finetune_kit.sections import Batching

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset


@dataclass(frozen=True)
class TargetBatches:
    """Batches of target instances.

    Args:
        dataset: The dataset.
        instances: Indices of the instances to go through, ``(n,)``.
        batch_size: Instances per batch; with ``batching="users"`` the last user's instances may exceed it.
        max_length: Length that source sequences are padded or cut to.
        num_negatives: Negatives drawn per instance.
        batching: ``"instances"`` draws instances at random (the paper's); ``"users"`` draws users with all their
            instances, so that a user is encoded once an epoch.
        source: Windows of the source domain of which every batch is given some, again from the start when they are
            through; None gives none.
    """

    dataset: Dataset
    instances: np.ndarray
    batch_size: int
    max_length: int
    num_negatives: int = 1
    batching: Batching = "users"
    source: SourceWindows | None = None

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of one epoch in an order, and with negatives, drawn from ``generator``."""
        order = self._order(generator)
        windows = self._source_batches(generator)
        for instances in self._cut(order):
            batch = make_batch(self.dataset, instances, self.max_length)
            batch.negative = draw_negatives(
                batch.positive, self.dataset.num_target_items, self.num_negatives, generator
            )
            batch.source = next(windows)
            yield batch

    def num_batches(self) -> int:
        """Return about how many batches an epoch has."""
        return -(-len(self.instances) // self.batch_size)

    def _source_batches(self, generator: torch.Generator) -> Iterator[Windows | None]:
        """Yield source batches without end, shuffled anew in each round; without a source, None."""
        while self.source is None:
            yield None
        shuffling = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        while True:
            yield from self.source.epoch(shuffling)

    def _order(self, generator: torch.Generator) -> np.ndarray:
        """Return the instances shuffled; with ``batching="users"`` those of one user stay together."""
        if self.batching == "instances":
            return self.instances[torch.randperm(len(self.instances), generator=generator).numpy()]
        user, row = np.unique(self.dataset.target.user[self.instances], return_inverse=True)
        place = torch.randperm(len(user), generator=generator).numpy()[row]
        return self.instances[np.argsort(place, kind="stable")]

    def _cut(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Cut shuffled instances into batches, never between two instances of a user that stand together."""
        user = self.dataset.target.user[order]
        start = 0
        while start < len(order):
            end = min(start + self.batch_size, len(order))
            if self.batching == "users":
                while end < len(order) and user[end] == user[end - 1]:
                    end += 1
            yield order[start:end]
            start = end


def make_batch(dataset: Dataset, instances: np.ndarray, max_length: int) -> Batch:
    """Return the batch of given instances, each of their users in it once, without negatives."""
    of_instance = dataset.target.user[instances]
    user = np.sort(of_instance)
    user = user[np.append(True, user[1:] != user[:-1])]
    return Batch(
        user=torch.from_numpy(user),
        sequence=torch.from_numpy(dataset.sequences(user, max_length)),
        row=torch.from_numpy(np.searchsorted(user, of_instance)),
        positive=torch.from_numpy(dataset.target.item[instances]),
        negative=torch.empty(len(instances), 0, dtype=torch.int64),
    )


def evaluation_batches(
    dataset: Dataset, instances: np.ndarray, num_users: int, max_length: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield ``(indices, batch)`` over the given instances, ``num_users`` users a batch, in the order of users.

    Several processes are dealt the batches that one would have (`Processes.dealt`).

    Args:
        dataset: The dataset.
        instances: Indices of target instances, ``(n,)``.
        num_users: Users per batch.
        max_length: Length that source sequences are padded or cut to.
    """
    instances = instances[np.argsort(dataset.target.user[instances], kind="stable")]
    _, first = np.unique(dataset.target.user[instances], return_index=True)
    for part in here().dealt(np.split(instances, first[num_users::num_users])):
        yield part, make_batch(dataset, part, max_length)


def draw_negatives(positive: Tensor, num_items: int, num_negatives: int, generator: torch.Generator) -> Tensor:
    """Return items drawn uniformly from all but the positive, ``(instances, num_negatives)`` int64.

    Args:
        positive: Target items from 1, ``(instances,)``.
        num_items: Items of the target domain, at least 2.
        num_negatives: Draws per instance, with replacement.
        generator: Source of randomness, on the CPU.
    """
    drawn = torch.randint(1, num_items, (len(positive), num_negatives), generator=generator)
    return drawn + (drawn >= positive.unsqueeze(1))  # step over the positive


class SourceWindows:
    """Windows of source sequences for next-item prediction.

    Every event but a user's first is a label exactly once; windows are cut from the end, the latest one full.

    Args:
        dataset: The dataset.
        users: Users whose sequences are taken, ``(n,)``.
        batch_size: Windows per batch.
        max_length: Positions per window.
        latest_only: Only each user's latest window, as the paper does.
    """

    def __init__(
        self, dataset: Dataset, users: np.ndarray, batch_size: int, max_length: int, *, latest_only: bool = False
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._max_length = max_length
        num_labels = np.maximum(dataset.source_lengths[users - 1] - 1, 0)
        num_windows = -(-num_labels // max_length)
        if latest_only:
            num_windows = np.minimum(num_windows, 1)
        nth = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
        self._user = np.repeat(users, num_windows)
        self._skip_latest = nth * max_length

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._user)

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""
        return -(-len(self) // self._batch_size)

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Windows]:
        """Yield the windows of one epoch, shuffled if a generator is given."""
        order = np.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator).numpy()
        for start in range(0, len(order), self._batch_size):
            part = order[start : start + self._batch_size]
            window = self._dataset.sequences(
                self._user[part], self._max_length + 1, skip_latest=self._skip_latest[part]
            )
            inputs, labels = window[:, :-1], np.where(window[:, :-1] == 0, 0, window[:, 1:])
            yield Windows(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(labels))

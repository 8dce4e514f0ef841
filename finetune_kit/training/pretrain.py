"""Stage 1: learn the source domain by next-item prediction (UAF paper, Eq. 3-5), or by guessing hidden items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit import losses
from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Windows
from finetune_kit.errors import DataError
from finetune_kit.seeding import derive_seed, generator
from finetune_kit.trainable import Trainable

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset


class NextItem(Trainable):
    """Predicts, at every position, the item that follows: ``softmax(W E_L + b)`` (Eq. 3).

    A backbone that is not causal predicts hidden items instead (`Backbone.source_task`), by the same equation.

    Args:
        backbone: What is pre-trained.
        frequency: ``(num_items,)``, how often each source item occurs; needed by the sampled loss only.
        num_negatives: Items drawn per step; 0 computes the exact loss.
        seed: Seeds the draws.
    """

    def __init__(
        self, backbone: Backbone, frequency: Tensor | None = None, num_negatives: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = nn.Linear(backbone.dim, backbone.num_items)
        self._num_negatives = num_negatives
        self._seed = seed
        self._noise = generator(seed, "sampled-softmax")
        self._hiding = generator(seed, "hidden-items")
        self._share = None if frequency is None else frequency / frequency.sum()  # stays on the CPU: only draws use it

    def start_epoch(self, epoch: int) -> None:
        """Make the drawn and the hidden items a function of (seed, epoch)."""
        self._noise = generator(self._seed, "sampled-softmax", epoch)
        self._hiding = generator(self._seed, "hidden-items", epoch)

    def forward(self, batch: Windows) -> Tensor:
        """Return the mean of −log p(x_t | x_1 … x_{t−1}) over positions with a label (Eq. 5), nats per item."""
        batch = self.backbone.source_task(batch, self._hiding if self.training else None)
        return self.sampled_loss(batch) if self._num_negatives and self.training else self.exact_loss(batch)

    def exact_loss(self, batch: Windows) -> Tensor:
        """Return the loss over all items, some positions at a time."""
        return losses.next_item(self.backbone(batch.inputs), batch.labels, self.output)

    def sampled_loss(self, batch: Windows) -> Tensor:
        """Return the loss over the label y and m items drawn with probabilities Q, their frequencies.

        The partition sum is estimated without bias: ``exp o_y + Σ_{drawn j ≠ y} exp(o_j) / (m Q_j)`` (importance
        sampling, Bengio & Senécal, 2008); with many draws the loss is the exact one.
        """
        assert self._share is not None, "the sampled loss needs the items' frequencies"
        hidden, labels = self._labelled(batch)
        drawn = torch.multinomial(self._share, self._num_negatives, replacement=True, generator=self._noise)
        log_expected = (self._share.log() + math.log(self._num_negatives)).to(hidden.device)  # log(m Q_j)
        drawn = drawn.to(hidden.device)
        negative = F.linear(hidden, self.output.weight[drawn], self.output.bias[drawn]) - log_expected[drawn]
        negative = negative.masked_fill(drawn == labels.unsqueeze(1), -torch.inf)  # a label is no negative of itself
        positive = (hidden * self.output.weight[labels]).sum(dim=1) + self.output.bias[labels]
        scores = torch.cat([positive.unsqueeze(1), negative], dim=1)  # (positions, 1 + drawn)
        return (scores.logsumexp(dim=1) - positive).mean()

    def _labelled(self, batch: Windows) -> tuple[Tensor, Tensor]:
        """Return hidden states ``(positions, dim)`` and item indices ``(positions,)`` where there is a label."""
        hidden = self.backbone(batch.inputs)  # (windows, length, dim)
        has_label = batch.labels != 0
        return hidden[has_label].float(), batch.labels[has_label] - 1


@dataclass(frozen=True)
class HeldOut:
    """Users whose sequences train, and users whose sequences tell when to stop."""

    train: np.ndarray
    valid: np.ndarray


def hold_out(dataset: Dataset, share: float, seed: int) -> HeldOut:
    """Return a random split of the users that have at least two source events.

    Raises:
        DataError: When fewer than two users have them.
    """
    users = with_next_item(dataset)
    shuffled = np.random.default_rng(derive_seed(seed, "held-out")).permutation(users)
    num_valid = min(max(1, round(len(users) * share)), len(users) - 1)
    return HeldOut(train=np.sort(shuffled[num_valid:]), valid=np.sort(shuffled[:num_valid]))


def with_next_item(dataset: Dataset) -> np.ndarray:
    """Return the users that have at least two source events, so that there is a next one to predict.

    Raises:
        DataError: When fewer than two users have them.
    """
    users = np.flatnonzero(dataset.source_lengths >= 2) + 1
    if len(users) < 2:
        raise DataError(
            f"{len(users)} users have two or more source events; learning the source domain needs at least 2 such users"
        )
    return users

"""Stage 1: learn the source domain by next-item prediction (UAF paper, Eq. 3-5), or by guessing hidden items."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune_kit import losses
from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Windows
from finetune_kit.errors import DataError
from finetune_kit.processes import Processes, slices
from finetune_kit.seeding import derive_seed, generator
from finetune_kit.tables import OutputLayer
from finetune_kit.trainable import Trainable

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset


@dataclass
class Guesses(Windows):
    """Windows in which everything is drawn that their loss needs.

    Args:
        drawn: ``(draws,)``, the items that are negatives to all labels, from 0; None without a sampled loss.
        log_share: ``(draws,)``, log Q of each.
    """

    drawn: Tensor | None = None
    log_share: Tensor | None = None

    def __getitem__(self, part: slice) -> Guesses:
        """Return some of the windows, with all that was drawn."""
        return replace(self, inputs=self.inputs[part], labels=self.labels[part])

    @property
    def num_labels(self) -> int:
        """How many positions have a label."""
        return int((self.labels != 0).sum())


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
        self.output = OutputLayer(backbone.dim, backbone.num_items)
        self._num_negatives = num_negatives
        self._seed = seed
        self._noise = generator(seed, "sampled-softmax")
        self._hiding = generator(seed, "hidden-items")
        self._negatives = None if frequency is None else Lottery(frequency)

    def start_epoch(self, epoch: int) -> None:
        """Make the drawn and the hidden items a function of (seed, epoch)."""
        self._noise = generator(self._seed, "sampled-softmax", epoch)
        self._hiding = generator(self._seed, "hidden-items", epoch)

    def forward(self, batch: Windows) -> Tensor:
        """Return the mean of −log p(x_t | x_1 … x_{t−1}) over positions with a label (Eq. 5), nats per item."""
        guesses = batch if isinstance(batch, Guesses) else self.prepared(batch)
        return self.exact_loss(guesses) if guesses.drawn is None else self._sampled_loss(guesses)

    def prepared(self, batch: Windows) -> Guesses:
        """Return windows with what is to be guessed, and with the items drawn for the loss."""
        asked = self.backbone.source_task(batch, self._hiding if self.training else None)
        return self._with_negatives(asked) if self._num_negatives and self.training else _as_guesses(asked)

    def parts(self, batch: Guesses, number: int) -> list[tuple[Guesses, float]]:
        """Return windows in up to so many parts, each with its share of the labels."""
        cut = [batch[part] for part in slices(len(batch), min(number, len(batch)))]
        weighed = [(part, part.num_labels / batch.num_labels) for part in cut]
        return [(part, weight) for part, weight in weighed if weight]

    def shared_loss(self, batch: Guesses, processes: Processes) -> Tensor:
        """Return this process's windows' loss, weighted so that the average over processes is the loss of all."""
        own = batch[processes.shares(len(batch))[processes.rank]]
        if not own.num_labels:
            return 0.0 * self.output.bias.sum()  # nothing to learn from, but the others wait for a gradient
        return self(own) * (processes.size * own.num_labels / batch.num_labels)

    def exact_loss(self, batch: Windows) -> Tensor:
        """Return the loss over all items, some positions at a time."""
        return losses.next_item(self.backbone(batch.inputs), batch.labels, self.output)

    def sampled_loss(self, batch: Windows) -> Tensor:
        """Return the loss over the label y and m items drawn with probabilities Q, their frequencies.

        The partition sum is estimated without bias: ``exp o_y + Σ_{drawn j ≠ y} exp(o_j) / (m Q_j)`` (importance
        sampling, Bengio & Senécal, 2008); with many draws the loss is the exact one.
        """
        return self._sampled_loss(self._with_negatives(batch))

    def _with_negatives(self, batch: Windows) -> Guesses:
        """Return windows with the items that are drawn for them."""
        assert self._negatives is not None, "the sampled loss needs the items' frequencies"
        device = batch.inputs.device
        drawn, log_share = (part.to(device) for part in self._negatives.draw(self._num_negatives, self._noise))
        return Guesses(batch.inputs, batch.labels, drawn, log_share)

    def _sampled_loss(self, batch: Guesses) -> Tensor:
        """Return the loss over the labels and the items drawn."""
        drawn, log_share = batch.drawn, batch.log_share
        assert drawn is not None
        assert log_share is not None
        hidden, labels = self._labelled(batch)
        # One look-up for both: where gradients are dense, each would have one as large as W.
        weight, bias = self.output.rows(torch.cat([labels, drawn]))
        positive = (hidden * weight[: len(labels)]).sum(dim=1) + bias[: len(labels)]
        log_expected = log_share + math.log(self._num_negatives)  # log(m Q_j)
        negative = F.linear(hidden, weight[len(labels) :], bias[len(labels) :]) - log_expected
        negative = negative.masked_fill(drawn == labels.unsqueeze(1), -torch.inf)  # a label is no negative of itself
        scores = torch.cat([positive.unsqueeze(1), negative], dim=1)  # (positions, 1 + drawn)
        return (scores.logsumexp(dim=1) - positive).mean()

    def _labelled(self, batch: Windows) -> tuple[Tensor, Tensor]:
        """Return hidden states ``(positions, dim)`` and item indices ``(positions,)`` where there is a label."""
        hidden = self.backbone(batch.inputs)  # (windows, length, dim)
        has_label = batch.labels != 0
        return hidden[has_label].float(), batch.labels[has_label] - 1


def _as_guesses(windows: Windows) -> Guesses:
    return Guesses(windows.inputs, windows.labels)


class Lottery:
    """Draws items with probabilities Q in proportion to their frequencies; it stays on the CPU.

    Args:
        frequency: ``(num_items,)``, at least 0.
    """

    def __init__(self, frequency: Tensor) -> None:
        self._cumulative = frequency.double().cumsum(0)
        self._log_share = (frequency / frequency.sum()).log()

    def draw(self, num_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return items drawn with replacement, from 0, and their log Q, both ``(num_draws,)``.

        By bisection in the cumulative sum, ``num_draws · log num_items`` steps, and for any number of items;
        `torch.multinomial` sums the probabilities up anew in each call, and takes no more than 2²⁴.
        """
        uniform = torch.rand(num_draws, dtype=torch.float64, generator=generator)
        drawn = torch.searchsorted(self._cumulative, uniform * self._cumulative[-1], right=True)
        return drawn, self._log_share[drawn]


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

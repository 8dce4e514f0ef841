"""The control of a per-user policy: the best single choice of blocks for all users, at equal usage.

A policy that decides per user must beat what its own model does when everybody is given one and the same choice of
blocks; otherwise nothing is gained by deciding per user. The UAF paper lacks this control.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune_kit.errors import FinetuneKitError
from finetune_kit.strategy import Encoded, Strategy

if TYPE_CHECKING:
    from finetune_kit.data.batch import Batch
    from finetune_kit.task import Task
    from finetune_kit.training.experiment import Experiment

MAX_CHOICES = 256
"""Choices that are tried at most: enough for 10 blocks; of more, validation would take longer than it is worth."""


@dataclass(frozen=True)
class SingleChoice:
    """A trained strategy in which all users get the same gates; takes a strategy's place in evaluation.

    Args:
        strategy: A strategy with gates.
        gates: One gate per block, 1 fine-tuned, 0 frozen.
    """

    strategy: Strategy
    gates: tuple[int, ...]

    @property
    def task(self) -> Task:
        """The strategy's task."""
        return self.strategy.task

    def eval(self) -> SingleChoice:
        """Put the strategy into evaluation mode."""
        self.strategy.eval()
        return self

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)`` with these gates."""
        gates = torch.tensor(self.gates, dtype=torch.float32, device=batch.sequence.device)
        return self.strategy.encode_with(batch, gates.expand(len(batch.user), -1))  # (users, blocks)


def best_single_choice(experiment: Experiment, strategy: Strategy, gates: np.ndarray) -> SingleChoice:
    """Return the choice for all users that does best on validation, among those that use as many fine-tuned blocks.

    Its weights are those that were trained under the policy.

    Args:
        experiment: Whose validation part decides, by its `monitor`.
        strategy: A trained strategy with gates.
        gates: ``(users, blocks)``, what its policy chose.

    Raises:
        FinetuneKitError: Where there are more than `MAX_CHOICES`.
    """
    choices = list(choices_at_equal_usage(gates))
    if len(choices) > MAX_CHOICES:
        raise FinetuneKitError(
            f"{len(choices)} single choices use as many blocks, more than {MAX_CHOICES}; none was tried"
        )
    single = [SingleChoice(strategy, choice) for choice in choices]
    return max(single, key=lambda choice: experiment.validator(choice)()[experiment.monitor])


def choices_at_equal_usage(gates: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Yield the choices of blocks whose number of fine-tuned ones is the mean one, rounded."""
    num_blocks, usage = gates.shape[1], float(gates.sum(axis=1).mean())
    for tuned in itertools.combinations(range(num_blocks), math.floor(usage + 0.5)):
        yield tuple(int(k in tuned) for k in range(num_blocks))

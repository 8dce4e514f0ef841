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
        gates: One gate per block, 1 fine-tuned, 0 frozen or skipped.
        skipped: Per block, 1 skipped, 0 computed; None for strategies that don't skip blocks.
    """

    strategy: Strategy
    gates: tuple[int, ...]
    skipped: tuple[int, ...] | None = None

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
        gates = torch.tensor(self.gates, dtype=torch.float32, device=batch.sequence.device)  # (blocks,)
        if self.skipped is not None:
            skipped = torch.tensor(self.skipped, dtype=torch.float32, device=batch.sequence.device)
            gates = torch.stack([gates, 1 - gates - skipped, skipped], dim=-1)  # (blocks, 3)
        return self.strategy.encode_with(batch, gates.expand(len(batch.user), *gates.shape))


def best_single_choice(
    experiment: Experiment, strategy: Strategy, gates: np.ndarray, skipped: np.ndarray | None = None
) -> SingleChoice:
    """Return the choice for all users that does best on validation, among those that use as many fine-tuned blocks.

    Where blocks are skipped, it skips as many too.

    Its weights are those that were trained under the policy.

    Args:
        experiment: Whose validation part decides, by its `monitor`.
        strategy: A trained strategy with gates.
        gates: ``(users, blocks)``, what its policy chose.
        skipped: ``(users, blocks)``, what its policy skipped; None where it can't.

    Raises:
        FinetuneKitError: Where there are more than `MAX_CHOICES`.
    """
    num_tuned, num_skipped = _usage(gates, skipped)
    num_choices = math.comb(gates.shape[1], num_tuned) * math.comb(gates.shape[1] - num_tuned, num_skipped)
    if num_choices > MAX_CHOICES:
        raise FinetuneKitError(
            f"{num_choices} single choices use as many blocks, more than {MAX_CHOICES}; none was tried"
        )
    single = [SingleChoice(strategy, *choice) for choice in choices_at_equal_usage(gates, skipped)]
    return max(single, key=lambda choice: experiment.validator(choice)()[experiment.monitor])


def choices_at_equal_usage(
    gates: np.ndarray, skipped: np.ndarray | None = None
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Yield the choices of blocks that fine-tune (and skip) as many as users do on average, rounded.

    Each is the gates and what is skipped, None where nothing can be.
    """
    num_blocks, (num_tuned, num_skipped) = gates.shape[1], _usage(gates, skipped)
    for tuned in itertools.combinations(range(num_blocks), num_tuned):
        rest = [k for k in range(num_blocks) if k not in tuned]
        for left_out in itertools.combinations(rest, num_skipped):
            yield _indicators(tuned, num_blocks), None if skipped is None else _indicators(left_out, num_blocks)


def _usage(gates: np.ndarray, skipped: np.ndarray | None) -> tuple[int, int]:
    """Return how many blocks a user fine-tunes and skips on average, rounded, from ``(users, blocks)`` each."""
    num_tuned, num_skipped = (
        0 if shares is None else math.floor(float(shares.sum(axis=1).mean()) + 0.5) for shares in (gates, skipped)
    )
    return num_tuned, min(num_skipped, gates.shape[1] - num_tuned)  # both may have been rounded up


def _indicators(chosen: tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """Return for each block 1 if it is among the chosen, else 0."""
    return tuple(int(k in chosen) for k in range(num_blocks))

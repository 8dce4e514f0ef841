"""Evaluation, as the contract of strategies sees it: blind to what is asked for, and without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.strategy import Strategy


def other_instances(batch: Batch, num_target_items: int) -> Iterator[Batch]:
    """Yield a batch's users with other answers: other items, instances that are others' or missing, and negatives."""
    other = batch.positive % num_target_items + 1
    yield replace(batch, positive=other, negative=batch.positive.unsqueeze(1))
    yield replace(batch, row=batch.row.flip(0), positive=other.flip(0), negative=batch.negative[:, :0])
    none = batch.row[:0]
    yield replace(batch, row=none, positive=none, negative=batch.negative[:0])


@torch.no_grad()
def assert_encodes_blindly(strategy: Strategy, batch: Batch, num_target_items: int) -> None:
    """Assert that a strategy in evaluation encodes users by their histories, and that this changes nothing of it.

    Args:
        strategy: In evaluation mode.
        batch: Users with instances.
        num_target_items: How many items answers may be.
    """
    before, expected = _tensors(strategy), strategy.encode(batch)
    for other in other_instances(batch, num_target_items):
        found = strategy.encode(other)
        again = strategy.encode(batch)
        for name in ("vectors", "gates", "probabilities", "skipped"):
            one = getattr(expected, name)
            if strategy.is_deterministic and one is not None:
                assert torch.equal(getattr(found, name), one), f"{name} depend on the batch's instances"
                assert torch.equal(getattr(again, name), one), f"{name} depend on what was encoded before"
    after = _tensors(strategy)
    changed = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    assert not changed and before.keys() == after.keys(), f"evaluation changed {changed or 'what tensors there are'}"


def evaluated_in_between(steps: Iterable[Tensor], strategy: Strategy, batch: Batch) -> Iterator[Tensor]:
    """Yield the losses of a training in which the strategy is evaluated after each step."""
    for loss in steps:
        yield loss
        is_training = strategy._mode  # `training` itself is False where all is frozen
        with torch.no_grad():
            strategy.eval().encode(batch)
        strategy.train(is_training)


def assert_same_tensors(one: Strategy, other: Strategy, what: str) -> None:
    """Assert that all of two strategies' parameters and buffers are the same; ``what`` would have changed them."""
    was, now = _tensors(other), _tensors(one)
    assert was.keys() == now.keys(), f"{what} changed which tensors there are: {sorted(was.keys() ^ now.keys())}"
    differ = [name for name, tensor in now.items() if not torch.equal(tensor, was[name])]
    assert not differ, f"{what} changed {differ}"


@torch.no_grad()
def scores(strategy: Strategy, batch: Batch) -> Tensor:
    """Return the scores of all answers for the users of a batch, ``(users, answers)``."""
    return strategy.task.scores(strategy.encode(batch).vectors)


def _tensors(strategy: Strategy) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, those outside of the state too."""
    return {name: tensor.clone() for name, tensor in (*strategy.named_parameters(), *strategy.named_buffers())}

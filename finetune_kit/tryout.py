"""What it takes to try a model out: made-up users, evaluation mode, and how far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def made_up_sequence(
    num_users: int,
    length: int,
    num_items: int,
    random: torch.Generator,
    *,
    min_items: int = 1,
    num_known: Sequence[int] | None = None,
) -> Tensor:
    """Return random item ids ``(users, length)``, left-padded with 0.

    Args:
        num_users: How many users.
        length: Items and padding of each.
        num_items: Ids are from 1 to so many.
        random: Draws the items, then how many of them a user has.
        min_items: A user has from so many items to ``length``.
        num_known: How many items each user has, where that is not drawn.
    """
    items = torch.randint(1, num_items + 1, (num_users, length), generator=random)
    if num_known is None:
        lengths = torch.randint(min_items, length + 1, (num_users, 1), generator=random)
    else:
        lengths = torch.tensor(num_known).unsqueeze(1)  # (users, 1)
    return items * (torch.arange(length) >= length - lengths)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for as long as this lasts; then each part is in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def relative_difference(expected: Tensor, found: Tensor, *, at_least: float = 1e-12) -> float:
    """Return the largest difference of two tensors of one shape, relative to the largest expected value.

    Args:
        expected: Any shape.
        found: The same shape.
        at_least: What the difference is at least relative to, so that values near zero need not be equal.

    Returns:
        0 for tensors without values, infinity where a value is no number.
    """
    if not expected.numel():
        return 0.0
    expected, found = expected.double(), found.double()
    difference = ((expected - found).abs().max() / expected.abs().max().clamp(min=at_least)).item()
    return math.inf if math.isnan(difference) else difference

"""How hidden states lie in memory, and taking single positions or users of them.

Autograd's own gradient of an index adds rows up singly, and that of a slice writes zeros everywhere first; in a network
of small convolutions that costs more than the products do. All shapes are ``(users, positions, dim)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def time_major(hidden: Tensor) -> Tensor:
    """Return hidden states as ``(positions, users, dim)``, contiguous; a view where they already lie so in memory."""
    return hidden.transpose(0, 1).contiguous()


def at_steps(hidden: Tensor, stands: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    """Return the positions that stand at some steps before the last one.

    Args:
        hidden: ``(users, positions, dim)``.
        stands: Where they stand, earliest first.
        steps: Which of them to take, earliest first.
    """
    if steps == stands:
        return hidden
    if steps == stands[-len(steps) :]:
        return _Latest.apply(hidden, len(steps))
    return _AtPositions.apply(hidden, [stands.index(step) for step in steps])


class Group(NamedTuple):
    """Some of a batch's users."""

    rows: Tensor
    """Their rows, ``(rows,)`` int64; behind them, the last one may be repeated."""
    count: int
    """How many users they are; further rows are there for the shape's sake, and nothing is kept of them."""


def parted(hidden: Tensor, groups: Sequence[Group]) -> Sequence[Tensor]:
    """Return the hidden states of groups of users, ``(rows, positions, dim)`` each.

    Args:
        hidden: ``(users, positions, dim)``.
        groups: Every user is in one of them.
    """
    return _Parted.apply(hidden, groups)


def joined(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """Return what `parted` took apart, ``(users, positions, dim)``."""
    return _Joined.apply(groups, *parts)


def as_computed(input: Tensor) -> Tensor:
    """Return a tensor in the type that autocast computes products in; as it is where autocast is off."""
    kind = input.device.type
    return input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input


class _Latest(torch.autograd.Function):
    """The last positions; unlike a slice's, its gradient lies in memory as what it is added to does."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, num: int) -> Tensor:
        ctx.before = hidden.shape[1] - num
        return hidden[:, ctx.before :]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        if _is_time_major(gradient):
            return F.pad(gradient.transpose(0, 1), (0, 0, 0, 0, ctx.before, 0)).transpose(0, 1), None
        return F.pad(gradient, (0, 0, ctx.before, 0)), None


class _AtPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, positions: Sequence[int]) -> Tensor:
        ctx.positions, ctx.num_positions = positions, hidden.shape[1]
        return torch.stack([hidden[:, position] for position in positions]).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_positions = dict(zip(ctx.positions, gradients[0].unbind(dim=1), strict=True))
        nothing = torch.zeros_like(gradients[0][:, 0])
        parts = [of_positions.get(position, nothing) for position in range(ctx.num_positions)]
        return torch.stack(parts).transpose(0, 1), None


class _Parted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, groups: Sequence[Group]) -> tuple[Tensor, ...]:
        ctx.groups = groups
        return tuple(_part(hidden, group) for group in groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _join(gradients, ctx.groups), None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Sequence[Group], *parts: Tensor) -> Tensor:
        ctx.groups = groups
        return _join(parts, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts = [_part(gradients[0], group) for group in ctx.groups]
        for part, group in zip(parts, ctx.groups, strict=True):
            part[group.count :] = 0
        return None, *parts


def _part(hidden: Tensor, group: Group) -> Tensor:
    if _is_time_major(hidden):
        return hidden.transpose(0, 1).index_select(1, group.rows).transpose(0, 1)
    return hidden.index_select(0, group.rows)


def _join(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """Return the parts in one tensor, time-major where the largest of them is."""
    users, largest = sum(group.count for group in groups), max(parts, key=len)
    _, *sizes = largest.shape
    if _is_time_major(largest):
        result = largest.new_empty(sizes[0], users, *sizes[1:]).transpose(0, 1)
    else:
        result = largest.new_empty(users, *sizes)
    for part, group in zip(parts, groups, strict=True):
        result.index_copy_(0, group.rows[: group.count], part[: group.count])
    return result


def _is_time_major(hidden: Tensor) -> bool:
    return not hidden.is_contiguous() and hidden.transpose(0, 1).is_contiguous()

"""Moving hidden states between positions, with gradients that move them back without adding up one by one.

Autograd's own gradient of an index adds rows up singly, and that of a slice writes zeros everywhere first; in a network
of small convolutions that costs more than the products do. All shapes are ``(users, positions, dim)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOWHERE = -1
"""Stands for a position before the sequence, whose hidden state is zero."""


def at_steps(hidden: Tensor, stands: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    """Return the positions that stand at some steps before the last one.

    Args:
        hidden: ``(users, positions, dim)``.
        stands: Where they stand, earliest first.
        steps: Which of them to take, earliest first.
    """
    if steps == stands[-len(steps) :]:
        return hidden[:, -len(steps) :]
    return gathered(hidden, [stands.index(step) for step in steps])


def gathered(hidden: Tensor, index: Sequence[int]) -> Tensor:
    """Return the positions of an index, ``(users, len(index), dim)``, any of them more than once, or `NOWHERE`."""
    return _Gathered.apply(hidden, index)


def side_by_side(hidden: Tensor, shifts: Sequence[int]) -> Tensor:
    """Return for each position the ones some steps before it, ``(users, positions, len(shifts) · dim)``.

    Args:
        hidden: ``(users, positions, dim)``; before the first stand zeros.
        shifts: Steps back; the last is 0.
    """
    return _SideBySide.apply(hidden, shifts)


def as_computed(input: Tensor) -> Tensor:
    """Return a tensor in the type that autocast computes products in; as it is where autocast is off."""
    kind = input.device.type
    return input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input


class _Gathered(torch.autograd.Function):
    """Takes positions; the gradient of each is the sum over the places it was taken to, gathered likewise."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, index: Sequence[int]) -> Tensor:
        """Return ``(users, len(index), dim)``."""
        places: list[list[int]] = [[] for _ in range(hidden.shape[1])]
        for place, position in enumerate(index):
            if position != NOWHERE:
                places[position].append(place)
        ctx.width = max(map(len, places))
        back = [place for own in places for place in (*own, *[NOWHERE] * (ctx.width - len(own)))]
        ctx.save_for_backward(_places(back, hidden))
        return _taken(hidden, _places(index, hidden))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``hidden``."""
        (back,) = ctx.saved_tensors
        return _taken(gradients[0], back).unflatten(1, (-1, ctx.width)).sum(dim=2), None


def _places(index: Sequence[int], hidden: Tensor) -> Tensor:
    """Return an index in which 0 stands for `NOWHERE` and 1 for the first position, ``(len(index),)``."""
    return torch.tensor(index, device=hidden.device) - NOWHERE


def _taken(hidden: Tensor, places: Tensor) -> Tensor:
    return F.pad(hidden, (0, 0, 1, 0)).index_select(1, places)


class _SideBySide(torch.autograd.Function):
    """Copies positions to where they are needed; the gradient adds the copies up in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shifts: Sequence[int]) -> Tensor:
        """Return ``(users, length, shifts · dim)``."""
        assert shifts[-1] == 0
        ctx.shifts = shifts
        users, length, dim = hidden.shape
        copies = hidden.new_empty(users, length, len(shifts), dim)
        for k, shift in enumerate(shifts):
            copies[:, :shift, k] = 0
            copies[:, shift:, k] = hidden[:, : max(length - shift, 0)]
        return copies.flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``hidden``."""
        copies = gradients[0].unflatten(2, (len(ctx.shifts), -1))  # (users, length, shifts, dim)
        gradient = copies[:, :, -1].contiguous()  # a copy, wherever something is added to it
        for k, shift in enumerate(ctx.shifts[:-1]):
            gradient[:, : max(copies.shape[1] - shift, 0)] += copies[:, shift:, k]
        return gradient, None

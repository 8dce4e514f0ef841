"""Layers that more than one family of plugins builds with: the dilated causal convolutions of NextItNet.

Hidden states are ``(users, length, dim)`` everywhere; convolutions look only at earlier positions.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.backbone import Context, at_steps


class CausalConv1d(nn.Conv1d):
    """Dilated convolution over ``(users, length, dim)`` in which position t sees t, t−d, t−2d, … only.

    Parameters are those of `torch.nn.Conv1d`: ``weight`` ``(out, in, kernel)`` and ``bias`` ``(out,)``.

    Args:
        dim: Channels in and out.
        dilation: Steps between the positions that one output sees, ≥ 1.
        kernel_size: Number of positions that one output sees, ≥ 1.
    """

    def __init__(self, dim: int, dilation: int, kernel_size: int = 3) -> None:
        super().__init__(dim, dim, kernel_size, dilation=dilation)

    @property
    def reach(self) -> int:
        """How many positions back the earliest input of an output lies."""
        return self.dilation[0] * (self.kernel_size[0] - 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``(users, length, dim)``, the same shape."""
        length, step = input.shape[1], self.dilation[0]
        padded = F.pad(input, (0, 0, self.reach, 0))  # (users, reach + length, dim)
        taps = [padded[:, tap * step : tap * step + length] for tap in range(self.kernel_size[0])]
        return self._product(torch.cat(taps, dim=-1))

    def taps(self, step: int) -> list[int]:
        """Return where the inputs of one output stand, in steps before the last position, earliest first."""
        return [step + tap * self.dilation[0] for tap in reversed(range(self.kernel_size[0]))]

    def at(self, input: Tensor, stands: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
        """Return the convolution at single positions only, ``(users, wanted, dim)``.

        Args:
            input: ``(users, positions, dim)``, zeros at padding.
            stands: Where its positions stand, in steps before the last one; what is not among them is padding.
            wanted: Where outputs are wanted, in the same steps.
        """
        place = {step: index for index, step in enumerate(stands)}
        padded = F.pad(input, (0, 0, 0, 1))  # (users, positions + 1, dim); the last stands for all padding
        index = [[place.get(step, len(stands)) for step in self.taps(output)] for output in wanted]
        return self._product(padded[:, index].flatten(2))

    def _product(self, taps: Tensor) -> Tensor:
        """Return the sum over taps side by side, ``(users, positions, kernel · dim)`` → ``(users, positions, dim)``."""
        # One matrix product over the taps side by side: on CPUs its backward pass is up to three times as
        # fast as that of conv1d (tests/benchmarks/test_speed_of_layers.py).
        kernel = self.weight.transpose(1, 2).flatten(1)  # (out, kernel · in)
        return F.linear(taps, kernel, self.bias)


class DilatedBlock(nn.Module):
    """Residual block of two dilated causal convolutions, Eq. 1 and 2 of the UAF paper (NextItNet's block).

    ``E_l = F(E) + E`` with ``F(E) = ReLU(LN2(conv_2d(ReLU(LN1(conv_d(E))))))``.

    Args:
        dim: Channels.
        dilation: Dilation d of the first convolution; the second has 2d.
        kernel_size: Positions that each convolution sees.
    """

    sites = ("conv1", "conv2")
    """Where a patch can go: each is a module ``(users, length, dim)`` → same shape, followed by a LayerNorm."""

    def __init__(self, dim: int, dilation: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv1: nn.Module = CausalConv1d(dim, dilation, kernel_size)
        self.norm1 = nn.LayerNorm(dim, eps=1e-8)
        self.conv2: nn.Module = CausalConv1d(dim, 2 * dilation, kernel_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-8)
        self.reach = cast("CausalConv1d", self.conv1).reach + cast("CausalConv1d", self.conv2).reach

    def inputs_for(self, wanted: tuple[int, ...], length: int) -> tuple[int, ...] | None:
        """Return the positions that outputs at ``wanted`` depend on, in steps before the last; None with a patch in."""
        if not (isinstance(self.conv1, CausalConv1d) and isinstance(self.conv2, CausalConv1d)):
            return None
        for conv in (self.conv2, self.conv1):
            seen = {step for output in wanted for step in conv.taps(output) if step < length}
            wanted = tuple(sorted(seen, reverse=True))
        return wanted

    def branch(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``F(E)``, Eq. 2, for hidden states ``(users, length, dim)``."""
        if context.wanted is not None:
            return self._branch_at(hidden, context, context.given, context.wanted)
        hidden = F.relu(self.norm1(self.conv1(context.masked(hidden))))
        return F.relu(self.norm2(self.conv2(context.masked(hidden))))

    def _branch_at(self, hidden: Tensor, context: Context, given: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
        """Return ``F(E)`` at single positions, ``(users, wanted, dim)``, of hidden states ``(users, given, dim)``."""
        conv1, conv2 = cast("CausalConv1d", self.conv1), cast("CausalConv1d", self.conv2)
        seen = {step for output in wanted for step in conv2.taps(output)}
        inner = tuple(step for step in given if step in seen)  # what is not given stands before the sequence
        hidden = F.relu(self.norm1(conv1.at(context.at(given).masked(hidden), given, inner)))
        return F.relu(self.norm2(conv2.at(context.at(inner).masked(hidden), inner, wanted)))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``F(E) + E``, Eq. 1, the shape of ``hidden`` ``(users, length, dim)``."""
        skip = hidden if context.wanted is None else at_steps(hidden, context.given, context.wanted)
        return self.branch(hidden, context) + skip

"""Parts that more than one family builds with: the dilated causal convolutions of NextItNet, and moving padding.

Hidden states are ``(users, length, dim)`` everywhere; convolutions look only at earlier positions.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.backbone import Context


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
        # One matrix product over the taps side by side: on CPUs its backward pass is up to three times as
        # fast as that of conv1d (tests/benchmarks/test_speed_of_layers.py).
        kernel = self.weight.transpose(1, 2).flatten(1)  # (out, kernel · in)
        return F.linear(torch.cat(taps, dim=-1), kernel, self.bias)


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

    def branch(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``F(E)``, Eq. 2, for hidden states ``(users, length, dim)``."""
        hidden = F.relu(self.norm1(self.conv1(context.masked(hidden))))
        return F.relu(self.norm2(self.conv2(context.masked(hidden))))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``F(E) + E``, Eq. 1, the shape of ``hidden`` ``(users, length, dim)``."""
        return self.branch(hidden, context) + hidden


def rolled(values: Tensor, shift: Tensor) -> Tensor:
    """Return ``(users, length, …)`` with each user's positions moved to the left, around the end.

    Args:
        values: ``(users, length)`` or ``(users, length, dim)``.
        shift: ``(users,)``, by how many positions; negative ones move to the right.
    """
    length = values.shape[1]
    source = (torch.arange(length, device=values.device) + shift.unsqueeze(1)) % length  # (users, length)
    if values.dim() == 3:
        source = source.unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, source)

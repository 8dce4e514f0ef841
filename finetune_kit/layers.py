"""Parts that more than one family builds with: the dilated causal convolutions of NextItNet, and moving padding.

Hidden states are ``(users, length, dim)`` everywhere; convolutions look only at earlier positions.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Context
from finetune_kit.convolution import Tap, causal_convolution, norm_relu
from finetune_kit.positions import as_computed, at_steps


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
        length = input.shape[1]
        shifts = [min(shift, length) for shift in self.taps(0)]
        return self._convolved(input, [Tap(shift, range(length - shift)) for shift in shifts])

    def taps(self, step: int) -> list[int]:
        """Return where the inputs of one output stand, in steps before the last position, earliest first."""
        return [step + tap * self.dilation[0] for tap in reversed(range(self.kernel_size[0]))]

    def inputs_for(self, wanted: tuple[int, ...], length: int) -> tuple[int, ...]:
        """Return where the inputs of some outputs stand within a sequence, in the same steps, earliest first."""
        return tuple(sorted({step for output in wanted for step in self.taps(output) if step < length}, reverse=True))

    def at(self, input: Tensor, stands: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
        """Return the convolution at single positions only, ``(users, wanted, dim)``.

        Args:
            input: ``(users, positions, dim)``, zeros at padding.
            stands: Where its positions stand, in steps before the last one, earliest first; what is not among them
                stands before the sequence.
            wanted: Where outputs are wanted, in the same steps, earliest first.
        """
        place = {step: position for position, step in enumerate(stands)}
        taps = []
        for steps in zip(*map(self.taps, wanted), strict=True):  # of one tap, for each output
            places = [place[step] for step in steps if step in place]
            taps.append(Tap(len(wanted) - len(places), places))
        return self._convolved(input, taps)

    def _convolved(self, input: Tensor, taps: list[Tap]) -> Tensor:
        return causal_convolution(as_computed(input), self.weight, self.bias, taps)


class NormReLU(nn.LayerNorm):
    """ReLU(LN(E)); parameters are those of `torch.nn.LayerNorm`."""

    _is_compiled = False

    def compile(self, *args: object, **options: object) -> None:
        """Let `torch.compile` make one kernel of it, instead of the whole ``forward``; options are not looked at."""
        self._is_compiled = True

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the shape of ``input`` ``(users, positions, dim)``, zeros where ``mask`` ``(…, 1)`` is 0."""
        return norm_relu(input, self.weight, self.bias, self.eps, mask, compiled=self._is_compiled)


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
        self.norm1 = NormReLU(dim, eps=1e-8)
        self.conv2: nn.Module = CausalConv1d(dim, 2 * dilation, kernel_size)
        self.norm2 = NormReLU(dim, eps=1e-8)
        self.reach = cast("CausalConv1d", self.conv1).reach + cast("CausalConv1d", self.conv2).reach

    def compile(self, *args: object, **options: object) -> None:
        """Compile what stands between the convolutions, which are products that a library computes."""
        self.norm1.compile()
        self.norm2.compile()

    def inputs_for(self, wanted: tuple[int, ...], length: int) -> tuple[int, ...] | None:
        """Return the positions that outputs at ``wanted`` depend on, in steps before the last.

        None where a patch is in, or where so many are wanted that single positions are no faster than all.
        """
        if not (isinstance(self.conv1, CausalConv1d) and isinstance(self.conv2, CausalConv1d)):
            return None
        inner = self.conv2.inputs_for(wanted, length)
        if len(wanted) + len(inner) > min(length, wanted[0] + self.reach + 1):
            return None
        return self.conv1.inputs_for(inner, length)

    def branch(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``F(E)``, Eq. 2, for hidden states ``(users, length, dim)``."""
        if context.wanted is not None:
            return self._branch_at(hidden, context, context.given, context.wanted)
        hidden = self.norm1(self.conv1(context.masked(hidden)), context.mask)
        return self.norm2(self.conv2(hidden))

    def _branch_at(self, hidden: Tensor, context: Context, given: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
        """Return ``F(E)`` at single positions, ``(users, wanted, dim)``, of hidden states ``(users, given, dim)``."""
        conv1, conv2 = cast("CausalConv1d", self.conv1), cast("CausalConv1d", self.conv2)
        seen = {step for output in wanted for step in conv2.taps(output)}
        inner = tuple(step for step in given if step in seen)  # what is not given stands before the sequence
        hidden = self.norm1(conv1.at(context.at(given).masked(hidden), given, inner), context.at(inner).mask)
        return self.norm2(conv2.at(hidden, inner, wanted))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return ``F(E) + E``, Eq. 1, the shape of ``hidden`` ``(users, length, dim)``."""
        skip = hidden if context.wanted is None else at_steps(hidden, context.given, context.wanted)
        branch = self.branch(hidden, context)
        if torch.is_grad_enabled() or branch.dtype != skip.dtype:
            return branch + skip
        return branch.add_(skip)  # nothing needs the branch any more


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

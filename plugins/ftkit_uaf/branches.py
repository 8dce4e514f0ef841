"""What every UAF strategy does to a backbone: each block gets a trainable copy, and a gate between the two.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, Eq. 6:

    E_l = I_l(u) F̂_l(E_{l−1}) + (1 − I_l(u)) F_l(E_{l−1}) + E_{l−1}

For a residual block G(E) = F(E) + E the last term is (I_l + (1 − I_l)) E_{l−1}, so the equation equals
I_l Ĝ_l(E_{l−1}) + (1 − I_l) G_l(E_{l−1}), which needs whole blocks only and so applies to every backbone.

| symbol | attribute | shape |
| --- | --- | --- |
| G_l | ``frozen`` | (users, length, dim) → same |
| Ĝ_l | ``tuned`` | (users, length, dim) → same |
| I_l(u) | ``gate`` | (users,) |
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Context
from finetune_kit.strategy import Strategy


class TwoBranchBlock(nn.Module):
    """A pre-trained block, its trainable copy, and a gate per user between them (Eq. 6).

    Args:
        block: The pre-trained residual block G; the copy Ĝ starts from its weights.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.frozen = block
        self.tuned = copy.deepcopy(block)
        self.reach = getattr(block, "reach", None)
        self._mixes_users = next(block.buffers(), None) is not None  # e.g. the statistics of a BatchNorm

    def inputs_for(self, wanted: tuple[int, ...], length: int) -> tuple[int, ...] | None:
        """Return the positions that outputs at ``wanted`` depend on, if the block can tell (`Backbone`)."""
        inputs_for = getattr(self.frozen, "inputs_for", None)
        return inputs_for(wanted, length) if inputs_for else None

    def forward(self, hidden: Tensor, context: Context, gate: Tensor) -> Tensor:
        """Return I Ĝ(E) + (1 − I) G(E), the shape of ``hidden`` ``(users, length, dim)``; ``gate`` is ``(users,)``."""
        is_tuned = gate.detach() == 1
        if self._mixes_users or not (is_tuned | (gate.detach() == 0)).all():
            gate = gate[:, None, None]  # (users, 1, 1)
            return gate * self.tuned(hidden, context) + (1 - gate) * self.frozen(hidden, context)
        return self._one_each(hidden, context, gate, is_tuned)

    def _one_each(self, hidden: Tensor, context: Context, gate: Tensor, is_tuned: Tensor) -> Tensor:
        """Return the same where every gate is 0 or 1: a user's gradient then flows through one branch only.

        The other one is computed only if the policy learns from the difference between the two, and without a graph.
        """
        order = is_tuned.argsort(descending=True, stable=True)
        split = [int(is_tuned.sum()), len(is_tuned) - int(is_tuned.sum())]
        parts, rows = hidden[order].split(split), order.split(split)
        branches = (self.tuned, self.frozen)
        taken = [branch(part, context.rows(row)) for branch, part, row in zip(branches, parts, rows, strict=True) if len(row)]
        output = torch.empty_like(hidden) if False else torch.cat(taken)[order.argsort()]
        if not (gate.requires_grad and torch.is_grad_enabled()):
            return output
        with torch.no_grad():
            other = [b(part, context.rows(row)) for b, part, row in zip(reversed(branches), parts, rows, strict=True) if len(row)]
            sign = (2 * is_tuned - 1)[order].to(hidden.dtype)[:, None, None]
            difference = ((torch.cat(taken) - torch.cat(other)) * sign)[order.argsort()]
        return StraightThrough.apply(output, gate, difference)


class StraightThrough(torch.autograd.Function):
    """Passes a mixture of branches on, and hands its gate the gradient ``⟨∂L/∂output, Ĝ(E) − G(E)⟩``."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gate: Tensor, difference: Tensor) -> Tensor:
        ctx.save_for_backward(difference)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (difference,) = ctx.saved_tensors
        return gradient, (gradient * difference).sum(dim=(1, 2)), None


def add_tuned_branches(strategy: Strategy, kind: type[TwoBranchBlock] = TwoBranchBlock) -> None:
    """Replace every block of a strategy's backbone by a `TwoBranchBlock` (or a kind of it), the old block frozen."""
    backbone = strategy.backbone
    backbone.blocks = nn.ModuleList(kind(block) for block in backbone.blocks)
    for block in backbone.blocks:
        assert isinstance(block, TwoBranchBlock)
        strategy.freeze(block.frozen)

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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Context
from finetune_kit.strategy import Strategy
from ftkit_uaf.mixture import Branch, mixture, whole_mixture


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

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile each branch; which users take it is another number in every batch."""
        self.frozen.compile(*args, **options)
        self.tuned.compile(*args, **options)

    def forward(self, hidden: Tensor, context: Context, gate: Tensor) -> Tensor:
        """Return I Ĝ(E) + (1 − I) G(E), the shape of ``hidden`` ``(users, length, dim)``; ``gate`` is ``(users,)``."""
        return self.mix(torch.stack([gate, 1 - gate], dim=1), [self.tuned, self.frozen], hidden, context)

    def mix(self, shares: Tensor, branches: Sequence[Branch], hidden: Tensor, context: Context) -> Tensor:
        """Return Σ_i z_i B_i(E) for shares ``(users, branches)``, computing no more than counts."""
        if self._mixes_users:
            return whole_mixture(shares, branches, hidden, context)
        return mixture(shares, branches, hidden, context, is_training=self.training)


def add_tuned_branches(strategy: Strategy, kind: type[TwoBranchBlock] = TwoBranchBlock) -> None:
    """Replace every block of a strategy's backbone by a `TwoBranchBlock` (or a kind of it), the old block frozen."""
    backbone = strategy.backbone
    backbone.blocks = nn.ModuleList(kind(block) for block in backbone.blocks)
    for block in backbone.blocks:
        assert isinstance(block, TwoBranchBlock)
        strategy.freeze(block.frozen)

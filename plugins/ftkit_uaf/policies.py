"""The policy networks: from a user's source sequence to logits over the actions of every block.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, section 3.3: a
light NextItNet with dilations {1, 2, 4, 8}, i.e. two residual blocks; section 5.2.3: a GRU in its place. All
decisions of a user come at once, W_p h_p + b_p.

| symbol | attribute | shape |
| --- | --- | --- |
| E^u | ``item_embedding`` | (num_items + 1, dim) |
| h_p | ``conv``: mean over positions of the last block's output; ``gru``: the last state | (users, dim) |
| W_p, b_p | ``output`` | (blocks · outputs, dim), (blocks · outputs) |

Differences from the authors' code: positions that are padding are left out of the convolutions and of the mean
(``mask_padding=false`` has them in). Of their GRU the paper says no more than its name: ours has one layer as wide
as the backbone, runs over the items alone, and starts from PyTorch's initialisation. ``global`` is ours: the
control in which nothing depends on the user.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context, padding_mask
from finetune_kit.layers import DilatedBlock
from finetune_kit.options import Options
from finetune_kit.policy import Policy
from finetune_kit.positions import as_computed


class ConvPolicyOptions(Options):
    """Options of the convolutional policy."""

    mask_padding: bool = True
    """Leave padding out of the convolutions and the mean; false lets it in like an item, as the authors' code does."""


class ConvPolicy(Policy):
    """A copy of the pre-trained item embedding, two NextItNet blocks, the mean over positions, a linear layer."""

    Options = ConvPolicyOptions
    options: ConvPolicyOptions

    def __init__(self, backbone: Backbone, num_outputs: int, options: ConvPolicyOptions | None = None) -> None:
        super().__init__(backbone, num_outputs, options)
        self.item_embedding = copy.deepcopy(backbone.item_embedding)
        self.blocks = nn.ModuleList(DilatedBlock(backbone.dim, dilation) for dilation in (1, 4))
        self.output = nn.Linear(backbone.dim, self.num_blocks * num_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return logits ``(users, blocks, outputs)`` of item ids ``(users, length)``."""
        hidden = as_computed(self.item_embedding(sequence.T).transpose(0, 1))  # (users, length, dim), time-major
        mask = padding_mask(sequence.T, hidden.dtype).transpose(0, 1)  # (users, length, 1), likewise
        context = Context(mask if self.options.mask_padding else None)
        for block in self.blocks:
            hidden = block(hidden, context)
        if self.options.mask_padding:
            summary = (hidden * mask).sum(dim=1) / mask.sum(dim=1, dtype=torch.float32).clamp(min=1)  # (users, dim)
        else:
            summary = hidden.mean(dim=1)
        return self.output(summary).unflatten(-1, (self.num_blocks, self.num_outputs))


class GruPolicy(Policy):
    """A copy of the pre-trained item embedding, one GRU over the user's items, its last state, a linear layer."""

    def __init__(self, backbone: Backbone, num_outputs: int, options: Options | None = None) -> None:
        super().__init__(backbone, num_outputs, options)
        self.item_embedding = copy.deepcopy(backbone.item_embedding)
        self.gru = nn.GRU(backbone.dim, backbone.dim, batch_first=True)
        self.output = nn.Linear(backbone.dim, self.num_blocks * num_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return logits ``(users, blocks, outputs)`` of item ids ``(users, length)``."""
        num_items = (sequence != 0).sum(dim=1, keepdim=True)  # (users, 1)
        states, _ = self.gru(self.item_embedding(_left_aligned(sequence, num_items)))  # (users, length, dim)
        # Padding now stands behind the items, where it can't change the states before it.
        last = (num_items - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, states.shape[-1])
        summary = states.gather(1, last).squeeze(1) * (num_items > 0)  # (users, dim), 0 where there are no items
        return self.output(summary).unflatten(-1, (self.num_blocks, self.num_outputs))


def _left_aligned(sequence: Tensor, num_items: Tensor) -> Tensor:
    """Return left-padded item ids ``(users, length)`` with each user's ``num_items`` ``(users, 1)`` in front."""
    length = sequence.shape[1]
    position = torch.arange(length, device=sequence.device)
    return sequence.gather(1, (position + length - num_items) % length)


class GlobalPolicy(Policy):
    """The same learned logits for every user, undecided at first: what a policy gains without knowing the user."""

    def __init__(self, backbone: Backbone, num_outputs: int, options: Options | None = None) -> None:
        super().__init__(backbone, num_outputs, options)
        self.logits = nn.Parameter(torch.zeros(self.num_blocks, num_outputs))

    def forward(self, sequence: Tensor) -> Tensor:
        """Return logits ``(users, blocks, outputs)`` of item ids ``(users, length)``, which are not looked at."""
        return self.logits.expand(sequence.shape[0], -1, -1)

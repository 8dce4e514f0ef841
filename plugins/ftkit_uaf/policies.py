"""The policy networks of UAF: from a user's source sequence to logits over the actions of every block.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, section 3.3: a
light NextItNet with dilations {1, 2, 4, 8}, i.e. two residual blocks; all decisions of a user come at once.

| symbol | attribute | shape |
| --- | --- | --- |
| E^u | ``item_embedding`` | (num_items + 1, dim) |
| h_p | mean over positions of the last block's output | (users, dim) |
| W_p, b_p | ``output`` | (blocks · outputs, dim), (blocks · outputs) |

Differences from the authors' code: positions that are padding are left out of the convolutions and of the mean
(``mask_padding=false`` has them in).
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.layers import DilatedBlock
from finetune_kit.options import Options
from finetune_kit.policy import Policy


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
        mask = (sequence != 0).unsqueeze(-1).to(self.item_embedding.weight.dtype)  # (users, length, 1)
        context = Context(mask if self.options.mask_padding else None)
        hidden = self.item_embedding(sequence)  # (users, length, dim)
        for block in self.blocks:
            hidden = block(hidden, context)
        if self.options.mask_padding:
            summary = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (users, dim)
        else:
            summary = hidden.mean(dim=1)
        return self.output(summary).unflatten(-1, (self.num_blocks, self.num_outputs))

"""NextItNet: a stack of residual blocks of dilated causal convolutions.

Yuan, Karatzoglou, Arapakis, Jose, He: *A Simple Convolutional Generative Network for Next Item Recommendation*,
WSDM 2019, https://arxiv.org/abs/1808.05163. The equations are those of the UAF paper:

    E_l = F_l(E_{l−1}) + E_{l−1}                                          (Eq. 1)
    F_l(E) = ReLU(LN2(conv_{2d}(ReLU(LN1(conv_d(E))))))                     (Eq. 2)

| symbol | attribute | shape |
| --- | --- | --- |
| E_0 | ``item_embedding`` | (num_items + 1, dim) |
| F_l | ``blocks[l − 1].branch`` | (users, length, dim) → same |
| ψ_1, ψ_2 | ``blocks[l − 1].conv1``, ``.conv2`` | (dim, dim, kernel_size) |

Differences from the authors' code: padding is masked, so that more padding changes nothing (there, item 0 has a
learned embedding that runs through the convolutions; ``mask_padding=false``). Item embeddings start from N(0, 0.02²)
as there, convolutions from PyTorch's default. Sizes default to half of the paper's (``docs/method.md``).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, normal_embedding
from finetune_kit.layers import DilatedBlock
from finetune_kit.options import Options


class NextItNetOptions(Options):
    """Options of NextItNet."""

    dim: int = Field(64, ge=1)
    """Width of item embeddings and hidden states; the paper has 128."""
    num_blocks: int = Field(4, ge=1)
    """Residual blocks, two convolutions each; the paper has 8."""
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 4), min_length=1)
    """Dilation d of each block's first convolution (the second has 2d), repeated over the blocks."""
    kernel_size: int = Field(3, ge=1)
    """Positions that one convolution sees."""
    mask_padding: bool = True
    """Set padding to zero before every convolution; false lets it through like an item, as the authors' code does."""


class NextItNet(Backbone):
    """NextItNet, as described at the top of this file."""

    Options = NextItNetOptions
    options: NextItNetOptions

    def __init__(self, num_items: int, max_length: int, options: NextItNetOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        self.dim = self.options.dim
        self.item_embedding = normal_embedding(num_items, self.dim, std=0.02)
        dilations = self.options.dilations
        self.blocks = nn.ModuleList(
            DilatedBlock(self.dim, dilations[k % len(dilations)], self.options.kernel_size)
            for k in range(self.options.num_blocks)
        )

    def embed(self, sequence: Tensor) -> Tensor:
        """Return item embeddings ``(users, length, dim)``, in memory as the convolutions want them."""
        return self.look_up(sequence.T).transpose(0, 1)

    def item_mask(self, sequence: Tensor) -> Tensor | None:
        """Return the padding mask of item ids ``(users, length)``, or none with ``mask_padding=false``."""
        return super().item_mask(sequence) if self.options.mask_padding else None

"""BERT4Rec: self-attention blocks in which every position sees all others, pre-trained on hidden items.

Sun et al.: *BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer*,
CIKM 2019, https://arxiv.org/abs/1904.06690.

    h_i^0 = v_i + p_i
    A_l   = LN1(H_{l−1} + Dropout(MH(H_{l−1})))
    H_l   = LN2(A_l + Dropout(PFFN(A_l))),  PFFN(x) = GELU(x W_1 + b_1) W_2 + b_2

| symbol | attribute | shape |
| --- | --- | --- |
| v_i | ``item_embedding``; of a hidden item ``mask_vector`` | (num_items + 1, dim); (dim,) |
| p_i | ``position_embedding`` | (max_length, dim) |
| MH | ``blocks[l − 1].attention`` (`attention.py`) | (users, length, dim) → same |
| W_1, W_2 | first and last of ``blocks[l − 1].feed_forward`` | (4 dim, dim), (dim, 4 dim) |

The user vector is the state of the last item, as of every backbone. To predict the next item the paper appends a hidden
one and reads its state. Fine-tuning asks for something else, and trains the state that it reads to tell it: on the
synthetic data it made no difference which of the two that was (`docs/backbones.md`).

Differences from the paper: positions are counted from the end of the sequence (`attention.py`), there from its front,
so that padding changes nothing. Of the two layers that it has between H_L and the probabilities, a projection with GELU
and the item embedding, there is the last alone, with weights of its own: both belong to the task of pre-training. A
fifth of the items is hidden (the paper's share on MovieLens), and it adds sequences of which the last item alone is;
here these are those of which no other is. Dropout acts on h^0 too, as in the Transformer. Sizes default to NextItNet's
here (``num_blocks=2`` is the paper's).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftkit_backbones.attention import Attention, AttentionBackbone, AttentionContext, AttentionOptions


class Bert4RecBlock(nn.Module):
    """Residual block of self-attention and a feed-forward network, a LayerNorm after each.

    Args:
        dim: Width of hidden states.
        num_heads: Attention heads.
        dropout: Share that is dropped in training.
    """

    sites = ("attention.output", "feed_forward")
    """Where a patch can go: each is a module ``(users, length, dim)`` → same shape, after which a residual is added."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.feed_forward: nn.Module = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """Return H_l, the shape of ``hidden`` ``(users, length, dim)``."""
        hidden = self.norm1(hidden + self.dropout(self.attention(hidden, context.visible)))
        return self.norm2(hidden + self.dropout(self.feed_forward(hidden)))


class Bert4Rec(AttentionBackbone):
    """BERT4Rec, as described at the top of this file."""

    is_causal = False

    def __init__(self, num_items: int, max_length: int, options: AttentionOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        own = self.options
        self.mask_vector = nn.Parameter(0.02 * torch.randn(own.dim))
        self.blocks = nn.ModuleList(Bert4RecBlock(own.dim, own.num_heads, own.dropout) for _ in range(own.num_blocks))
        for part in self.blocks.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02, a=-0.02, b=0.02)
                nn.init.zeros_(part.bias)

    def embed(self, sequence: Tensor) -> Tensor:
        """Return h^0, ``(users, length, dim)``, of item ids ``(users, length)``; zeros at padding."""
        hidden = self.look_up(sequence) + self.positions(sequence)
        return self.dropout(hidden) * (sequence != 0).unsqueeze(-1)

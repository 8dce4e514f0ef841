"""SASRec: self-attention blocks in which no position sees a later one.

Kang, McAuley: *Self-Attentive Sequential Recommendation*, ICDM 2018, https://arxiv.org/abs/1808.09781.

    E_0 = Dropout(√dim M + P)
    S_l = E_{l−1} + Dropout(SA(LN1(E_{l−1})))
    E_l = S_l + Dropout(FFN(LN2(S_l))),  FFN(X) = ReLU(X W_1 + b_1) W_2 + b_2
    E   = LN(E_L)

| symbol | attribute | shape |
| --- | --- | --- |
| M | ``item_embedding`` | (num_items + 1, dim) |
| P | ``position_embedding`` | (max_length, dim) |
| SA | ``blocks[l − 1].attention`` (`attention.py`) | (users, length, dim) → same |
| LN | ``norm`` | (users, length, dim) → same |
| W_1, W_2 | first and last of ``blocks[l − 1].feed_forward`` | (dim, dim) |

Differences from the paper: its heads are not mixed by a matrix W^O, here they are, as in the Transformer (a site for
patches is there). It pads every sequence to one length and numbers positions from the front, so that the latest item
has always the same; here it has always 0, whatever the length (`attention.py`), which is the same. It shares M with
the output layer; here that is one of its own, as of all backbones. The factor √dim and the
last LayerNorm are those of the authors' code. Unlike theirs, LayerNorm acts on keys and values too, and what is added
around it is E_{l−1} itself, as the equations say. Linear maps start from PyTorch's default. Sizes default to
NextItNet's here (``dim=50 num_blocks=2 num_heads=1`` is the paper's).
"""

from __future__ import annotations

from torch import Tensor, nn

from finetune_kit.backbone import Context
from ftkit_backbones.attention import Attention, AttentionBackbone, AttentionContext, AttentionOptions


class SasRecBlock(nn.Module):
    """Residual block of causal self-attention and a feed-forward network, each behind a LayerNorm.

    Args:
        dim: Width of hidden states.
        num_heads: Attention heads.
        dropout: Share that is dropped in training.
    """

    sites = ("attention.output", "feed_forward")
    """Where a patch can go: each is a module ``(users, length, dim)`` → same shape, after which a residual is added."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-8)
        self.attention = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-8)
        self.feed_forward: nn.Module = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """Return E_l, the shape of ``hidden`` ``(users, length, dim)``."""
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden), context.visible))
        return hidden + self.dropout(self.feed_forward(self.norm2(hidden)))


class SasRec(AttentionBackbone):
    """SASRec, as described at the top of this file."""

    def __init__(self, num_items: int, max_length: int, options: AttentionOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        own = self.options
        self.blocks = nn.ModuleList(SasRecBlock(own.dim, own.num_heads, own.dropout) for _ in range(own.num_blocks))
        self.norm = nn.LayerNorm(own.dim, eps=1e-8)

    def embed(self, sequence: Tensor) -> Tensor:
        """Return E_0, ``(users, length, dim)``, of item ids ``(users, length)``; zeros at padding."""
        hidden = self.look_up(sequence) * self.dim**0.5 + self.positions(sequence)
        return self.dropout(hidden) * (sequence != 0).unsqueeze(-1)

    def finish(self, hidden: Tensor, context: Context) -> Tensor:
        """Return hidden states ``(users, length, dim)`` normalised."""
        return self.norm(hidden)

"""What the backbones with self-attention share: multi-head attention, who may look at whom, and learned positions.

Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, https://arxiv.org/abs/1706.03762:

    head_i    = softmax(Q_i K_iᵀ / √(dim / heads)) V_i,  (Q_i, K_i, V_i) = (X W_i^Q, X W_i^K, X W_i^V)
    MH(X)     = [head_1; …; head_h] W^O
    FFN(X)    = σ(X W_1 + b_1) W_2 + b_2

| symbol | attribute | shape |
| --- | --- | --- |
| W^Q, W^K, W^V | ``Attention.query``, ``.key``, ``.value``, all heads side by side | (dim, dim) |
| W^O | ``Attention.output`` | (dim, dim) |
| W_1, W_2 | first and last of ``feed_forward`` | (inner, dim), (dim, inner) |
| P | ``AttentionBackbone.position_embedding`` | (max_length, dim) |

Positions are counted from the end of a sequence, whose latest item has position 0: padding stands at the front, so
however much there is of it, an item keeps its position. Padding is never looked at, but each position may look at
itself. So a softmax over nothing, which is not a number, can't arise, not even for a user without items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context, normal_embedding
from finetune_kit.errors import OptionError
from finetune_kit.options import Options


class AttentionOptions(Options):
    """Options of backbones with self-attention."""

    dim: int = Field(64, ge=1)
    """Width of item embeddings and hidden states."""
    num_blocks: int = Field(4, ge=1)
    """Residual blocks, an attention and a feed-forward network each."""
    num_heads: int = Field(2, ge=1)
    """Attention heads; they share the width, which they must divide."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share that is dropped in training of what embedding, attention and feed-forward networks put out, and of the
    attention's weights."""

    @model_validator(mode="after")
    def _check_heads(self) -> AttentionOptions:
        refuse_heads_that_do_not_divide(self.dim, self.num_heads)
        return self


def refuse_heads_that_do_not_divide(dim: int, num_heads: int) -> None:
    """Refuse a number of attention heads that does not divide the width.

    Raises:
        OptionError: When it does not.
    """
    if dim % num_heads:
        raise OptionError(f"num_heads = {num_heads} does not divide dim = {dim}; use a number that does")


@dataclass(frozen=True)
class AttentionContext(Context):
    """A `Context` that also says who may look at whom.

    Args:
        visible: ``(users, 1, length, length)`` bool, whether a position (third) may look at another (fourth).
    """

    visible: Tensor

    def trailing(self, length: int) -> AttentionContext:
        """Return the context of the last ``length`` positions."""
        return replace(self, mask=super().trailing(length).mask, visible=self.visible[..., -length:, -length:])

    def rows(self, users: Tensor) -> AttentionContext:
        """Return the context of some of the batch's users, by their rows ``(some,)`` int64."""
        return replace(self, mask=super().rows(users).mask, visible=self.visible[users])


class Attention(nn.Module):
    """Multi-head self-attention, MH(X).

    Args:
        dim: Width of hidden states.
        num_heads: Heads; they divide ``dim``.
        dropout: Share of the attention weights that is dropped in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output: nn.Module = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``; ``visible`` is that of `AttentionContext`."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (users, heads, length, dim / heads)
            for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        return self.output(heads.transpose(1, 2).flatten(2))  # (users, length, dim)


class AttentionBackbone(Backbone):
    """Items with learned positions, in blocks that are given an `AttentionContext`.

    For implementers: set ``blocks`` in ``__init__``, after ``super().__init__()``.
    """

    Options = AttentionOptions
    options: AttentionOptions

    def __init__(self, num_items: int, max_length: int, options: AttentionOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        self.dim = self.options.dim
        self.item_embedding = normal_embedding(num_items, self.dim, std=0.02)
        self.position_embedding = nn.Embedding(max_length, self.dim)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        self.dropout = nn.Dropout(self.options.dropout)

    def prepare(self, sequence: Tensor) -> AttentionContext:
        """Return the padding mask, and who may look at whom, of item ids ``(users, length)``."""
        visible = visible_positions(sequence, is_causal=self.is_causal)
        return AttentionContext(self.item_mask(sequence), visible)

    def positions(self, sequence: Tensor) -> Tensor:
        """Return the position embeddings, ``(length, dim)``, of item ids ``(users, length)``."""
        position = torch.arange(sequence.shape[1] - 1, -1, -1, device=sequence.device)  # the latest has 0
        return self.position_embedding(position)


def visible_positions(sequence: Tensor, *, is_causal: bool) -> Tensor:
    """Return who may look at whom, ``(users, 1, length, length)`` bool: at items (not later ones) and at oneself.

    Args:
        sequence: Item ids ``(users, length)``, left-padded with 0.
        is_causal: Whether later items are out of sight.
    """
    length = sequence.shape[1]
    visible = (sequence != 0)[:, None, None, :]  # (users, 1, 1, length)
    if is_causal:
        visible = visible & torch.ones(length, length, dtype=torch.bool, device=sequence.device).tril()
    return visible | torch.eye(length, dtype=torch.bool, device=sequence.device)

"""GRU4Rec: gated recurrent layers, here in residual blocks.

Hidasi, Karatzoglou, Baltrunas, Tikk: *Session-based Recommendations with Recurrent Neural Networks*, ICLR 2016,
https://arxiv.org/abs/1511.06939. A layer runs over a user's items x_1 … x_n from the state h_0 = 0 (Eq. 2-5):

    z_t = σ(W_z x_t + U_z h_{t−1}),  r_t = σ(W_r x_t + U_r h_{t−1})
    ĥ_t = tanh(W x_t + U (r_t ⊙ h_{t−1}))
    h_t = (1 − z_t) h_{t−1} + z_t ĥ_t
    E_l = E_{l−1} + Dropout(GRU(LN(E_{l−1})))

| symbol | attribute | shape |
| --- | --- | --- |
| E_0 | ``item_embedding`` | (num_items + 1, dim) |
| GRU | ``blocks[l − 1].recurrence`` | (users, length, dim) → same |
| W_r, W_z, W | ``recurrence.weight_ih_l0``, in this order | (3 dim, dim) |
| U_r, U_z, U | ``recurrence.weight_hh_l0``, in this order | (3 dim, dim) |

Differences from the paper: each layer is a residual block E + GRU(LN(E)), the last equation: strategies mix, skip and
re-learn blocks, which needs each one's output to live where its input does. (In the paper a layer's output is the next
one's input; it also tries feeding the items to every layer.) PyTorch's GRU has biases, names 1 − z what is z above, and
multiplies r_t into U h_{t−1} + b rather than into h_{t−1}. Items are embedded, which the paper tried and found slightly
worse than one-hot input. It trains on session-parallel mini-batches with a ranking loss over the other sessions' items;
here pre-training is what it is for every backbone. Sequences begin with padding: it is moved behind the items while a
layer runs, so that the state of a user's first item is always h_1. Sizes default to NextItNet's here (``num_blocks=1``
is what the paper found best).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context, normal_embedding
from finetune_kit.layers import rolled
from finetune_kit.options import Options


class Gru4RecOptions(Options):
    """Options of GRU4Rec."""

    dim: int = Field(64, ge=1)
    """Width of item embeddings, states and hidden states; the paper has 100 and 1000."""
    num_blocks: int = Field(4, ge=1)
    """Residual blocks, a GRU layer each; the paper has 1."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of what the embedding and each GRU put out that is dropped in training."""


class Recurrence(nn.GRU):
    """A GRU layer that returns its states alone.

    Args:
        dim: Width of inputs and states.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, batch_first=True)

    def forward(self, input: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]  # without the last state
        """Return the states h_1 … h_n, the shape of ``input`` ``(users, length, dim)``."""
        # cuDNN has no backward pass in evaluation mode, in which a layer that a strategy froze stays.
        if self.training or not torch.is_grad_enabled():
            return super().forward(input)[0]
        with _without_cudnn():
            return super().forward(input)[0]


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Turn cuDNN off for as long as this lasts; torch's own ``cudnn.flags`` would reset all its other flags."""
    was_enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = was_enabled


class Gru4RecBlock(nn.Module):
    """Residual block of a GRU layer behind a LayerNorm.

    Args:
        dim: Width of hidden states.
        dropout: Share that is dropped in training.
    """

    sites = ("recurrence",)
    """Where a patch can go: a module ``(users, length, dim)`` → same shape; it is given items first, then padding."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.recurrence: nn.Module = Recurrence(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return E_l, the shape of ``hidden`` ``(users, length, dim)``."""
        assert context.mask is not None
        num_padding = (context.mask == 0).sum(dim=(1, 2))  # (users,)
        states = self.recurrence(rolled(self.norm(hidden), num_padding))
        return hidden + context.masked(self.dropout(rolled(states, -num_padding)))


class Gru4Rec(Backbone):
    """GRU4Rec, as described at the top of this file."""

    Options = Gru4RecOptions
    options: Gru4RecOptions

    def __init__(self, num_items: int, max_length: int, options: Gru4RecOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        self.dim = self.options.dim
        self.item_embedding = normal_embedding(num_items, self.dim, std=0.02)
        self.blocks = nn.ModuleList(
            Gru4RecBlock(self.dim, self.options.dropout) for _ in range(self.options.num_blocks)
        )
        self.dropout = nn.Dropout(self.options.dropout)

    def embed(self, sequence: Tensor) -> Tensor:
        """Return E_0, ``(users, length, dim)``, of item ids ``(users, length)``; zeros at padding."""
        return self.dropout(self.look_up(sequence)) * (sequence != 0).unsqueeze(-1)

"""MyBackbone: say here, in one sentence, how a user's sequence becomes hidden states.

Name the paper: authors, *title*, venue and year, link. Or say that the idea is yours. Then its equations, numbered as
there, and how they read off this file:

    F_l(E)_t = ReLU(W_l · LN(mean of E_1 … E_t) + b_l)                     (1)
    E_l = E_(l-1) + F_l(E_(l-1))                                           (2)

| symbol | attribute | shape |
| --- | --- | --- |
| E_0 | ``item_embedding`` | (num_items + 1, dim) |
| F_l | ``blocks[l - 1].branch`` | (users, length, dim) → same |
| W_l, b_l | ``blocks[l - 1].linear`` | (dim, dim), (dim,) |

Differences from the paper: each point at which this file does something else than the paper, or than the authors' code,
and why; "none" if there are none.
"""

from __future__ import annotations

from finetune_kit import Backbone, Context, Options
from finetune_kit.backbone import normal_embedding
from pydantic import Field
from torch import Tensor, nn


class MyBackboneOptions(Options):
    """Options of MyBackbone."""

    dim: int = Field(64, ge=1)
    """Width of item embeddings and hidden states."""
    num_blocks: int = Field(4, ge=1)
    """Residual blocks."""


class MyBackboneBlock(nn.Module):
    """Residual block in which each position sees the mean of the items up to it.

    A block may say its ``reach``, how many positions back an output looks: then only the positions that matter are
    computed. This one looks back to the first.

    Args:
        dim: Width of hidden states.
    """

    sites = ("linear",)
    """Where strategies can put a patch: modules that keep the shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear: nn.Module = nn.Linear(dim, dim)

    def branch(self, hidden: Tensor, context: Context) -> Tensor:
        """Return F(E), the shape of ``hidden`` ``(users, length, dim)`` (Eq. 1)."""
        assert context.mask is not None
        total = context.masked(hidden).cumsum(dim=1)  # (users, length, dim)
        mean = total / context.mask.cumsum(dim=1).clamp(min=1)
        return self.linear(self.norm(mean)).relu()

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Return E + F(E), the shape of ``hidden`` ``(users, length, dim)`` (Eq. 2)."""
        return hidden + self.branch(hidden, context)


class MyBackbone(Backbone):
    """MyBackbone, as described at the top of this file."""

    Options = MyBackboneOptions
    options: MyBackboneOptions

    def __init__(self, num_items: int, max_length: int, options: MyBackboneOptions | None = None) -> None:
        super().__init__(num_items, max_length, options)
        self.dim = self.options.dim
        self.item_embedding = normal_embedding(num_items, self.dim, std=0.02)
        self.blocks = nn.ModuleList(MyBackboneBlock(self.dim) for _ in range(self.options.num_blocks))

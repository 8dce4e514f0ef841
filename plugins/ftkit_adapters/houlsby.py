"""Houlsby's adapters: bottlenecks behind the sublayers of a frozen backbone, and LayerNorms that train.

Houlsby, Giurgiu, Jastrzębski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly: *Parameter-Efficient Transfer
Learning for NLP*, ICML 2019, https://arxiv.org/abs/1902.00751. Behind each sublayer ψ of a block (of a Transformer:
attention and feed-forward, after the projection back to the block's width), and so before what follows it (skip and
LayerNorm), stands an adapter:

    A(z) = z + W_up GELU(W_down z + b_down) + b_up
    ψ'(z) = A(ψ(z))

| symbol | attribute | shape |
| --- | --- | --- |
| z | ``hidden`` | (users, length, dim) |
| ψ | ``site`` | (users, length, dim) → same |
| A | ``adapter``, of `finetune_kit.sites` | (users, length, dim) → same |
| W_down, b_down | ``adapter.down`` | (bottleneck, dim), (bottleneck,) |
| W_up, b_up | ``adapter.up`` | (dim, bottleneck), (dim,) |

It differs from ``peterrec``, which took these adapters to convolutions, in that the blocks' LayerNorms train too, that
there is no parallel insertion, and in the width of the bottleneck.

Differences from the paper and the authors' code: W_up starts from zero, so that each adapter starts as exactly the
identity; there both matrices are drawn from a truncated normal distribution (of deviation 10⁻² in the paper, 10⁻³ in
the code), which is nearly the identity. W_down is drawn from N(0, 0.01²) without the truncation. LayerNorms outside of
the blocks stay frozen; the code trains the embedding's too. Where the sublayers are, the backbone says by its sites.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from finetune_kit.options import Options
from finetune_kit.sites import Adapter, Serial, layer_norms, patch_sites
from finetune_kit.strategy import Strategy


class HoulsbyOptions(Options):
    """Options of Houlsby's adapters."""

    bottleneck: int = Field(8, ge=1)
    """Width of the adapter's inner layer; the paper tries 2 to 256 in BERT, 768 or 1024 wide."""


class Houlsby(Strategy):
    """Train an adapter at every site of every block, the blocks' LayerNorms, and the head."""

    Options = HoulsbyOptions
    options: HoulsbyOptions

    def build(self) -> None:
        """Put the adapters, which change nothing before the first update, and freeze all but them and LayerNorms.

        Raises:
            PluginError: When a block of the backbone names no sites.
        """
        adapters = patch_sites(self.backbone, self._patched, type(self).__name__)
        self.freeze(self.backbone, but=[*adapters, *layer_norms(self.backbone)])

    def _patched(self, site: nn.Module) -> Serial:
        """Return a site with a new adapter."""
        return Serial(site, Adapter(self.backbone.dim, self.options.bottleneck, std=0.01))

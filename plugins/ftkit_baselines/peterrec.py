"""PeterRec: small adapters inside a backbone that stays as it was pre-trained.

Yuan, He, Karatzoglou, Zhang: *Parameter-Efficient Transfer from Sequential Behaviors for User Modeling and
Recommendation*, SIGIR 2020, https://arxiv.org/abs/2001.04253. At each site ψ of each block (a convolution that a
LayerNorm follows; NextItNet has two per block) stands an adapter, which the paper calls model patch:

    MP(z) = z + W_up GELU(W_down z + b_down) + b_up
    serial:    ψ'(z) = MP(ψ(z))
    parallel:  ψ'(z) = ψ(z) + MP(z)

| symbol | attribute | shape |
| --- | --- | --- |
| z | ``hidden`` | (users, length, dim) |
| ψ | ``site`` | (users, length, dim) → same |
| MP | ``adapter``, of `finetune_kit.sites` | (users, length, dim) → same |
| W_down, b_down | ``adapter.down`` | (bottleneck, dim), (bottleneck,) |
| W_up, b_up | ``adapter.up`` | (dim, bottleneck), (dim,) |

Differences from the paper and the authors' code: W_up starts from zero, so that each adapter starts as exactly the
identity; there all weights are drawn from a truncated N(0, 0.02²), which is nearly the identity, and W_down still is,
without the truncation. With ``insertion=serial`` the model therefore computes, before the first update, what the
pre-trained backbone computes; with ``parallel`` it can't, in the paper either, as the adapter's own skip adds z. The
authors' code trains the second LayerNorm of every block too, and advises it for parallel insertion;
``train_norms=true`` trains all LayerNorms of the blocks, which needs no knowledge of their names. Its ``cardinality``
(several thin adapters side by side) sums to the one here; it reports no gain from it. 1×1 convolutions are written as
the linear maps they are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from finetune_kit.errors import OptionError
from finetune_kit.options import Options
from finetune_kit.sites import Adapter, PatchedSite, Serial, layer_norms, patch_sites
from finetune_kit.strategy import Strategy


class PeterRecOptions(Options):
    """Options of PeterRec."""

    insertion: Literal["serial", "parallel"] = "serial"
    """Where the adapter stands: behind the site, or beside it."""
    bottleneck: int | None = Field(None, ge=1)
    """Width of the adapter's inner layer; none takes a quarter of the backbone's, as the authors' code does."""
    train_norms: bool = False
    """Train the LayerNorms of the blocks too; the authors advise it for parallel insertion."""


class Parallel(PatchedSite):
    """An adapter beside its site."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ψ(z) + MP(z), the shape of ``hidden`` ``(users, length, dim)``."""
        return self.site(hidden) + self.adapter(hidden)


class PeterRec(Strategy):
    """Train an adapter at every site of every block, and the head; the backbone stays as it was pre-trained."""

    Options = PeterRecOptions
    options: PeterRecOptions

    def build(self) -> None:
        """Put the adapters and freeze all else; inserted serially they change nothing before the first update.

        Raises:
            PluginError: When a block of the backbone names no sites.
            OptionError: When LayerNorms shall train and the blocks have none.
        """
        norms = layer_norms(self.backbone)
        if self.options.train_norms and not norms:
            name = type(self.backbone).__name__
            raise OptionError(
                f"strategy.train_norms = True, but the blocks of {name} have no LayerNorm; set it to false"
            )
        adapters = patch_sites(self.backbone, self._patched, type(self).__name__)
        self.freeze(self.backbone, but=[*adapters, *(norms if self.options.train_norms else [])])

    def _patched(self, site: nn.Module) -> PatchedSite:
        """Return a site with a new adapter."""
        dim = self.backbone.dim
        adapter = Adapter(dim, self.options.bottleneck or max(1, dim // 4), std=0.02)
        return Serial(site, adapter) if self.options.insertion == "serial" else Parallel(site, adapter)

"""Patches at the sites of a backbone's blocks: what strategies that put adapters inside of blocks share."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.errors import PluginError


class Adapter(nn.Module):
    """A bottleneck with a skip, ``z + W_up GELU(W_down z + b_down) + b_up``; starts as the identity.

    Args:
        dim: Width of hidden states.
        bottleneck: Width of the inner layer.
        std: Of the normal distribution that W_down is drawn from; W_up and the biases start from zero.
    """

    def __init__(self, dim: int, bottleneck: int, std: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.normal_(self.down.weight, std=std)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        inner = F.gelu(self.down(hidden), approximate="tanh")  # (users, length, bottleneck)
        return hidden + self.up(inner)


class PatchedSite(nn.Module):
    """A site with its adapter.

    Args:
        site: What stood there, ``(users, length, dim)`` → same shape.
        adapter: What is put there.
    """

    def __init__(self, site: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.site = site
        self.adapter = adapter


class Serial(PatchedSite):
    """An adapter behind its site."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return adapter(site(z)), the shape of ``hidden`` ``(users, length, dim)``."""
        return self.adapter(self.site(hidden))


def patch_sites(backbone: Backbone, patched: Callable[[nn.Module], PatchedSite], strategy: str) -> list[Adapter]:
    """Put an adapter at every site of every block; return the adapters, in the order of blocks and sites.

    Args:
        backbone: Edited in place.
        patched: From what stands at a site to that with its adapter.
        strategy: Who asks; named in the error.

    Raises:
        PluginError: When a block names no sites.
    """
    adapters = []
    for k, block in enumerate(backbone.blocks):
        sites = getattr(block, "sites", ())
        if not sites:
            raise PluginError(
                f"{strategy} puts its adapters at the sites of blocks, and block {k} of {type(backbone).__name__} "
                "names none; use a backbone that names sites, `ftkit backbones` lists them"
            )
        for site in sites:
            patched_site = patched(block.get_submodule(site))
            block.set_submodule(site, patched_site)
            adapters.append(patched_site.adapter)
    return adapters


def layer_norms(backbone: Backbone) -> list[nn.Module]:
    """Return the LayerNorms inside of the blocks; RMSNorms are LayerNorms without a mean, and go by many classes."""
    return [part for part in backbone.blocks.modules() if _is_layer_norm(part)]


def _is_layer_norm(part: nn.Module) -> bool:
    return isinstance(part, nn.LayerNorm | nn.RMSNorm) or type(part).__name__.endswith("RMSNorm")

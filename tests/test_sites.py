import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_kit.errors import PluginError
from finetune_kit.sites import Adapter, Serial, layer_norms, patch_sites
from finetune_kit.testing import TinyBackbone
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 9), bottleneck=st.integers(1, 12), length=st.integers(1, 6))
def test_a_new_adapter_is_the_identity_for_any_shape(dim: int, bottleneck: int, length: int) -> None:
    hidden = torch.randn(2, length, dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Adapter(dim, bottleneck, std=0.02)(hidden), hidden)


def test_every_site_of_every_block_gets_its_own_adapter_in_order() -> None:
    backbone = NextItNet(20, 12, NextItNetOptions(dim=4, num_blocks=2))
    convolutions = [site for block in backbone.blocks for site in (block.conv1, block.conv2)]
    adapters = patch_sites(backbone, lambda site: Serial(site, Adapter(4, 2, std=0.02)), "mine")
    patches = [site for block in backbone.blocks for site in (block.conv1, block.conv2)]
    assert [patch.site for patch in patches] == convolutions
    assert [patch.adapter for patch in patches] == adapters
    assert len(set(adapters)) == 4


def test_blocks_without_sites_are_refused_naming_who_asked() -> None:
    backbone = TinyBackbone(20, 12)
    backbone.blocks[1].sites = ()
    with pytest.raises(PluginError, match="mine puts its adapters at the sites of blocks, and block 1 of TinyBackbone"):
        patch_sites(backbone, lambda site: Serial(site, Adapter(8, 2, std=0.02)), "mine")


def test_the_norms_are_those_of_the_blocks() -> None:
    backbone = TinyBackbone(20, 12)
    backbone.norm = nn.LayerNorm(8)
    assert layer_norms(backbone) == [block.norm for block in backbone.blocks]


def test_norms_without_a_mean_are_norms_too_whatever_their_class() -> None:
    class LlamaRMSNorm(nn.Module):
        """As transformers have it: no subclass of torch's."""

    backbone = TinyBackbone(20, 12)
    backbone.blocks[0].norm, backbone.blocks[1].norm = nn.RMSNorm(8), LlamaRMSNorm()
    assert layer_norms(backbone) == [block.norm for block in backbone.blocks]

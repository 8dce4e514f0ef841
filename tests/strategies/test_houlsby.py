import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_of_all_kinds import GruBackbone
from torch import nn

from finetune_kit.backbone import Backbone
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.options import resolve
from finetune_kit.sites import Adapter, Serial
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, random_batch, random_sequence, randomise
from ftkit_adapters.houlsby import Houlsby, HoulsbyOptions
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions


class TestHoulsby(StrategyContract):
    strategy = "houlsby"
    backbones = (*StrategyContract.backbones, NextItNet)


def build(backbone: Backbone | None = None, **options: object) -> Houlsby:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12)) if backbone is None else backbone
    return Houlsby(backbone, ItemTask(backbone.dim, 9), resolve(HoulsbyOptions, options, "strategy"))


def test_the_equations_by_hand() -> None:
    adapter, halve = Adapter(dim=1, bottleneck=1, std=0.01), nn.Linear(1, 1)
    for layer, weight, bias in ((adapter.down, 2.0, 0.0), (adapter.up, 3.0, 0.25), (halve, 0.5, 0.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    # ψ(1) = 0.5; A(0.5) = 0.5 + 3 · GELU(1) + 0.25, and GELU(1) = (1 + tanh(√(2/π) · 1.044715)) / 2
    expected = 0.75 + 1.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))
    assert Serial(halve, adapter)(torch.ones(1, 1, 1)).item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 9), num_blocks=st.integers(1, 3), length=st.integers(1, 6), bottleneck=st.integers(1, 12))
def test_new_adapters_change_nothing_for_any_shape(dim: int, num_blocks: int, length: int, bottleneck: int) -> None:
    backbone = randomise(TinyBackbone(20, 12, TinyBackbone.Options(dim=dim, num_blocks=num_blocks)))
    sequence = random_sequence(3, length, 20)
    expected = backbone(sequence)
    strategy = build(backbone, bottleneck=bottleneck)
    torch.testing.assert_close(strategy.backbone(sequence), expected, atol=1e-6, rtol=1e-5)
    assert all(block.mix.adapter.down.weight.std(correction=0) < 0.05 for block in strategy.backbone.blocks)


def test_it_trains_two_adapters_and_two_norms_per_block_of_nextitnet_and_the_head() -> None:
    strategy = build(NextItNet(20, 12, NextItNetOptions(dim=4, num_blocks=2)), bottleneck=3)
    sites = [f"backbone.blocks.{k}.conv{nth}" for k in range(2) for nth in (1, 2)]
    parts = {f"{site}.adapter.{layer}" for site in sites for layer in ("down", "up")}
    parts |= {f"backbone.blocks.{k}.norm{nth}" for k in range(2) for nth in (1, 2)} | {"task.head"}
    assert {name.rpartition(".")[0] for name in strategy.trained_state()} == parts
    adapter, norm, head = 2 * 4 * 3 + 3 + 4, 2 * 4, 9 * (4 + 1)
    assert strategy.num_parameters()[0] == 4 * (adapter + norm) + head


def test_norms_outside_of_the_blocks_stay_frozen() -> None:
    backbone = TinyBackbone(20, 12)
    backbone.norm = nn.LayerNorm(8)
    assert not any(name.startswith("backbone.norm") for name in build(backbone).trained_state())


def test_blocks_without_sites_are_refused_with_what_would_do() -> None:
    with pytest.raises(PluginError, match=r"Houlsby puts .* block 0 of GruBackbone names none; use a backbone that"):
        build(GruBackbone(20, 12))


def test_its_adapters_can_not_be_merged_into_weights() -> None:
    with pytest.raises(PluginError, match="Houlsby can't be merged"):
        build().merged_backbone()


@pytest.mark.parametrize("options", [{"bottleneck": 0}, {"bottlneck": 2}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        build(**options)


def test_adapters_and_norms_alone_learn_what_users_like() -> None:
    strategy, batch = build(), random_batch(8)
    randomise(strategy.task).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    first = strategy(batch).item()
    for _ in range(100):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert strategy(batch).item() < 0.3 * first

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.options import resolve
from finetune_kit.sites import Adapter, PatchedSite, Serial
from finetune_kit.task import ItemTask
from finetune_kit.testing import StrategyContract, TinyBackbone, random_batch, random_sequence, randomise
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions
from ftkit_baselines.peterrec import Parallel, PeterRec, PeterRecOptions

GOLDEN = Path(__file__).parents[1] / "golden"


class TestPeterRec(StrategyContract):
    strategy = "peterrec"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestPeterRecInParallel(StrategyContract):
    strategy = "peterrec"
    options = {"insertion": "parallel"}  # noqa: RUF012  (as in a plugin author's test)
    backbones = (*StrategyContract.backbones, NextItNet)
    starts_as_pretrained = False


class TestPeterRecThatTrainsNorms(StrategyContract):
    strategy = "peterrec"
    options = {"train_norms": True, "bottleneck": 1}  # noqa: RUF012


def build(backbone: Backbone | None = None, **options: object) -> PeterRec:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12)) if backbone is None else backbone
    return PeterRec(backbone, ItemTask(backbone.dim, 9), resolve(PeterRecOptions, options, "strategy"))


@pytest.mark.parametrize("insertion", ["serial", "parallel"])
def test_it_computes_what_the_authors_code_computes(insertion: str) -> None:
    golden = load_file(GOLDEN / f"peterrec_{insertion}.safetensors")
    backbone = NextItNet(29, 12, NextItNetOptions(dim=8, num_blocks=4, mask_padding=False))
    strategy = build(backbone, insertion=insertion)
    state = {"item_embedding.weight": golden["embedding.weight"]}
    for name, tensor in golden.items():
        kind, *place = name.split(".")
        if kind == "blocks":
            k, part, parameter = place
            state[f"blocks.{k}.{part}{'.site' if part.startswith('conv') else ''}.{parameter}"] = tensor
        elif kind == "adapters":
            k, nth, layer, parameter = place  # weights are those of 1×1 convolutions, (out, in, 1)
            state[f"blocks.{k}.conv{nth}.adapter.{layer}.{parameter}"] = tensor[..., 0] if tensor.dim() == 3 else tensor
    strategy.backbone.load_state_dict(state)
    sequence, expected = golden["input.sequence"], golden["output.hidden"]
    torch.testing.assert_close(backbone(sequence), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.user_vectors(sequence), expected[:, -1], atol=1e-5, rtol=0)


def test_the_equations_by_hand() -> None:
    adapter, halve = Adapter(dim=1, bottleneck=1, std=0.02), nn.Linear(1, 1)
    for layer, weight, bias in ((adapter.down, 2.0, -1.0), (adapter.up, 3.0, 0.5), (halve, 0.5, 0.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    z = torch.ones(1, 1, 1)
    # GELU(1) = (1 + tanh(√(2/π) · 1.044715)) / 2 = 0.841192; MP(1) = 1 + 3 · GELU(2 · 1 − 1) + 0.5 = 4.023576
    assert 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)) == pytest.approx(0.841192, abs=1e-6)
    assert adapter(z).item() == pytest.approx(4.023576, abs=1e-5)
    # ψ(1) = 0.5: MP(0.5) = 0.5 + 3 · GELU(0) + 0.5 = 1; ψ(1) + MP(1) = 4.523576
    assert Serial(halve, adapter)(z).item() == pytest.approx(1.0, abs=1e-5)
    assert Parallel(halve, adapter)(z).item() == pytest.approx(4.523576, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    dim=st.integers(1, 9),
    num_blocks=st.integers(1, 3),
    length=st.integers(1, 6),
    bottleneck=st.none() | st.integers(1, 12),
)
def test_new_serial_adapters_change_nothing_and_parallel_ones_add_their_input_for_any_shape(
    dim: int, num_blocks: int, length: int, bottleneck: int | None
) -> None:
    sequence = random_sequence(3, length, 20)
    expected = randomise(tiny(dim, num_blocks))(sequence)
    serial = build(randomise(tiny(dim, num_blocks)), bottleneck=bottleneck)
    torch.testing.assert_close(serial.backbone(sequence), expected, atol=1e-6, rtol=1e-5)
    parallel = build(randomise(tiny(dim, num_blocks)), bottleneck=bottleneck, insertion="parallel")
    hidden = torch.randn(3, length, dim, generator=torch.Generator().manual_seed(0))
    site = parallel.backbone.blocks[-1].mix
    torch.testing.assert_close(site(hidden), site.site(hidden) + hidden, atol=1e-6, rtol=1e-5)


def tiny(dim: int = 8, num_blocks: int = 2) -> TinyBackbone:
    return TinyBackbone(20, 12, TinyBackbone.Options(dim=dim, num_blocks=num_blocks))


@pytest.mark.parametrize("insertion", ["serial", "parallel"])
@pytest.mark.parametrize(("dim", "bottleneck", "width"), [(8, None, 2), (8, 3, 3), (3, None, 1), (11, None, 2)])
def test_it_trains_as_many_parameters_as_the_formula_says(
    insertion: str, dim: int, bottleneck: int | None, width: int
) -> None:
    backbone = NextItNet(20, 12, NextItNetOptions(dim=dim, num_blocks=3))
    num_before = sum(parameter.numel() for parameter in backbone.parameters())
    strategy = build(backbone, insertion=insertion, bottleneck=bottleneck)
    head = 9 * (dim + 1)
    adapters = 3 * 2 * (2 * dim * width + width + dim)  # blocks × sites × (W_down, W_up, b_down, b_up)
    assert strategy.num_parameters() == (adapters + head, num_before + adapters + head)


@pytest.mark.parametrize("train_norms", [False, True])
def test_it_trains_adapters_head_and_if_asked_the_blocks_norms_and_nothing_else(train_norms: bool) -> None:
    strategy = build(NextItNet(20, 12, NextItNetOptions(dim=4, num_blocks=2)), train_norms=train_norms)
    sites = [f"backbone.blocks.{k}.conv{nth}" for k in range(2) for nth in (1, 2)]
    expected = {f"{site}.adapter.{layer}" for site in sites for layer in ("down", "up")} | {"task.head"}
    if train_norms:
        expected |= {f"backbone.blocks.{k}.norm{nth}" for k in range(2) for nth in (1, 2)}
    assert {name.rpartition(".")[0] for name in strategy.trained_state()} == expected
    assert strategy.frozen_stages == 1  # the embedding


def test_norms_outside_of_the_blocks_stay_frozen() -> None:
    backbone = tiny()
    backbone.norm = nn.LayerNorm(8)
    assert not any(name.startswith("backbone.norm") for name in build(backbone, train_norms=True).trained_state())


def test_the_adapters_alone_learn_what_users_like() -> None:
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


class NoSites(TinyBackbone):
    """A third party's backbone whose last block names no sites."""

    def __init__(self, num_items: int, max_length: int) -> None:
        super().__init__(num_items, max_length)
        self.blocks[1].sites = ()


class Nested(nn.Module):
    """A residual block whose site lies deeper."""

    sites = ("inner.0",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(dim, dim), nn.Tanh())

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden + self.inner(hidden)


class NestedSites(TinyBackbone):
    _block = Nested


def test_a_site_may_lie_deeper_in_a_block() -> None:
    strategy = build(NestedSites(20, 12))
    assert all(isinstance(block.inner[0], PatchedSite) for block in strategy.backbone.blocks)


def test_blocks_without_sites_are_refused_with_what_would_do() -> None:
    with pytest.raises(PluginError, match=r"block 1 of NoSites names none; use a backbone that names sites"):
        build(NoSites(20, 12))


def test_training_norms_where_there_are_none_is_refused() -> None:
    with pytest.raises(OptionError, match=r"train_norms = True, but the blocks of NestedSites have no LayerNorm"):
        build(NestedSites(20, 12), train_norms=True)


@pytest.mark.parametrize("options", [{"bottleneck": 0}, {"insertion": "both"}, {"bottlneck": 2}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        build(**options)

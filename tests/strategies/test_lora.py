import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_of_all_kinds import (
    AttentionBackbone,
    DilatedBackbone,
    EncoderBackbone,
    GruBackbone,
    GruCellBackbone,
)
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.layers import CausalConv1d
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import (
    StrategyContract,
    TinyBackbone,
    random_batch,
    random_sequence,
    randomise,
    tiny_backbones,
)
from ftkit_adapters.lora import Lora, LoraBlock, LoraOptions, LowRankChange
from ftkit_backbones.gru4rec import Gru4Rec
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions
from ftkit_backbones.sasrec import SasRec

ALL_KINDS = [
    *tiny_backbones(),
    AttentionBackbone,
    DilatedBackbone,
    EncoderBackbone,
    GruBackbone,
    GruCellBackbone,
    Gru4Rec,
    NextItNet,
    SasRec,
]
any_backbone = pytest.mark.parametrize("backbone_class", ALL_KINDS, ids=lambda backbone: backbone.__name__)


class TestLora(StrategyContract):
    strategy = "lora"
    backbones = (*StrategyContract.backbones, NextItNet)


def build(backbone: Backbone | type[Backbone] = TinyBackbone, **options: object) -> Lora:
    torch.manual_seed(0)
    backbone = backbone if isinstance(backbone, Backbone) else randomise(backbone(20, 12))
    return Lora(backbone, ItemTask(backbone.dim, 9), resolve(LoraOptions, options, "strategy"))


def trained(backbone_class: type[Backbone], **options: object) -> Lora:
    """Return the strategy after a few steps, in evaluation mode."""
    strategy = build(backbone_class, **options).train()
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    for seed in range(3):
        strategy(random_batch(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return strategy.eval()


def test_equation_3_by_hand_on_a_dilated_convolution() -> None:
    conv = CausalConv1d(1, dilation=2, kernel_size=2)
    conv.weight = nn.Parameter(torch.tensor([[[1.0, 2.0]]]))
    nn.init.zeros_(conv.bias)
    change = LowRankChange(conv.weight, rank=1, scale=2.0)
    change.A, change.B = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([[0.5]]))
    assert change(conv.weight).tolist() == [[[4.0, 6.0]]]  # (1, 2) + 2 · 0.5 · (3, 4)
    block = LoraBlock(OneLayer(conv), {"layer.weight": change})
    hidden = torch.tensor([[[1.0], [10.0], [100.0]]])
    assert block(hidden, Context(None)).flatten().tolist() == [6.0, 60.0, 604.0]  # 6 E_t + 4 E_{t−2}
    assert conv(hidden).flatten().tolist() == [2.0, 20.0, 201.0]


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return self.layer(hidden)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    rank=st.integers(1, 6),
    scale=st.sampled_from([0.25, 1.0, 3.0]),
)
def test_a_change_is_zero_at_first_and_then_the_scaled_product_for_any_shape(
    shape: list[int], rank: int, scale: float
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    change = LowRankChange(weight, rank, scale)
    assert torch.equal(change(weight), weight)
    randomise(change)
    expected = weight.clone()
    for output in range(shape[0]):
        for r in range(min(rank, shape[0], weight[0].numel())):
            expected[output] += scale * change.B[output, r].item() * change.A[r].detach().view(shape[1:])
    torch.testing.assert_close(change(weight).detach(), expected, atol=1e-5, rtol=1e-5)


@any_backbone
def test_every_weight_of_every_kind_of_layer_changes_what_is_computed(backbone_class: type[Backbone]) -> None:
    strategy, sequence = build(backbone_class).eval(), random_sequence(5, 7, 20)
    with torch.no_grad():
        before = strategy.backbone(sequence)
        for block in strategy.backbone.blocks:
            for change in block.changes:
                change.B.normal_()
                assert not torch.allclose(strategy.backbone(sequence), before, atol=1e-4)
                change.B.zero_()
        assert torch.equal(strategy.backbone(sequence), before)


@any_backbone
def test_gradients_reach_the_changes_and_the_head_alone(backbone_class: type[Backbone]) -> None:
    strategy = trained(backbone_class).train()  # at first B is zero, and A without a gradient
    strategy(random_batch(seed=9)).backward()
    with_gradient = {name for name, parameter in strategy.named_parameters() if parameter.grad is not None}
    assert with_gradient == strategy.trained_state().keys()
    assert all(
        (name.endswith((".A", ".B")) and ".changes." in name) or name.startswith("task.") for name in with_gradient
    )
    assert all(parameter.grad.any() for parameter in strategy.parameters() if parameter.grad is not None)


@any_backbone
def test_training_mode_evaluation_mode_and_the_merged_backbone_compute_the_same(
    backbone_class: type[Backbone],
) -> None:
    strategy, sequence = trained(backbone_class, rank=2, alpha=3.0), random_sequence(5, 7, 20)
    found = strategy.backbone.user_vectors(sequence)  # with gradients, so without PyTorch's fused kernels
    assert found.requires_grad
    assert torch.equal(strategy.train().backbone.user_vectors(sequence), found)
    strategy.eval()
    with torch.no_grad():
        torch.testing.assert_close(strategy.backbone.user_vectors(sequence), found, atol=1e-5, rtol=1e-5)
        merged = strategy.merged_backbone()
        assert torch.equal(merged.user_vectors(sequence), strategy.backbone.user_vectors(sequence))
    plain = randomise(backbone_class(20, 12)).eval()
    assert not torch.allclose(plain.user_vectors(sequence), found, atol=1e-3), "training changed nothing"
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain.user_vectors(sequence), found, atol=1e-5, rtol=1e-5)


def test_merging_leaves_the_strategy_as_it_was() -> None:
    strategy = trained(TinyBackbone)
    before = copy.deepcopy(strategy.state_dict())
    with torch.no_grad():
        for parameter in strategy.merged_backbone().parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in strategy.state_dict().items())


def test_the_fused_kernel_of_pytorchs_transformer_sees_the_changed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, num_calls = torch._transformer_encoder_layer_fwd, 0

    def spy(*args: object) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        return fused(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
    strategy, sequence = trained(EncoderBackbone), random_sequence(5, 7, 20)
    slow = strategy.backbone(sequence).detach()
    assert num_calls == 0
    with torch.no_grad():
        torch.testing.assert_close(strategy.backbone(sequence), slow, atol=1e-5, rtol=1e-5)
    assert num_calls == 2, "this version of PyTorch does not take its fused kernel here; the test says nothing"


def test_a_strategy_can_be_copied_after_a_step() -> None:
    strategy = trained(GruBackbone)
    strategy(random_batch()).backward()  # leaves tensors with a history in the flat list of weights
    batch = random_batch(seed=1)
    assert torch.equal(copy.deepcopy(strategy)(batch), strategy(batch))


def test_patterns_choose_the_weights() -> None:
    backbone = NextItNet(20, 12, NextItNetOptions(dim=4, num_blocks=2))
    strategy = build(backbone, weights="*conv2*", rank=3)
    assert [block.names for block in strategy.backbone.blocks] == [("conv2.weight",)] * 2
    assert strategy.num_parameters()[0] == 2 * 3 * (4 + 4 * 3) + 9 * (4 + 1)  # blocks · r · (out + in · kernel) + head
    assert strategy.frozen_stages == 1  # the embedding


def test_a_block_without_a_chosen_weight_stays_as_it_is() -> None:
    backbone = TinyBackbone(20, 12)
    backbone.blocks[1] = OneLayer(nn.Linear(8, 8))
    strategy = build(backbone, weights="layer*")
    assert [isinstance(block, LoraBlock) for block in strategy.backbone.blocks] == [False, True]
    assert strategy.frozen_stages == 2
    sequence = random_sequence(3, 5, 20)
    torch.testing.assert_close(strategy.merged_backbone()(sequence), strategy.backbone(sequence))


def test_the_scale_is_alpha_over_the_rank_that_was_asked_for() -> None:
    for options, scale in (({}, 1.0), ({"rank": 2}, 1.0), ({"rank": 2, "alpha": 3}, 1.5), ({"rank": 99}, 1.0)):
        (change, *_) = build(**options).backbone.blocks[0].changes
        assert (change.scale, change.A.shape) == (scale, (min(options.get("rank", 4), 8), 8))


def test_the_changes_alone_learn_what_users_like() -> None:
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


class OnlyScales(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden * self.scale


class NoWeights(TinyBackbone):
    _block = OnlyScales


def test_blocks_without_weights_are_refused_with_what_would_do() -> None:
    with pytest.raises(PluginError, match=r"the blocks of NoWeights have none; use a strategy .* e\.g\. bitfit"):
        build(NoWeights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "mix.hre.weight"}, r"Did you mean 'mix\.here\.weight'\? They have: mix\.here\.weight, mix\.befo"),
        ({"weights": "mix.here.bias"}, r"'mix\.here\.bias' matches no weight"),
        ({"weights": ""}, "weights"),
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"rnak": 2}, "Did you mean 'rank'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(**options)

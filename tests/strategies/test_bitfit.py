import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_of_all_kinds import AttentionBackbone, GruBackbone
from torch import Tensor, nn

from finetune_kit.backbone import Backbone, Context
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.options import resolve
from finetune_kit.task import ItemTask
from finetune_kit.testing import (
    BufferedBackbone,
    GlobalBackbone,
    StrategyContract,
    TinyBackbone,
    random_batch,
    random_sequence,
    randomise,
)
from ftkit_adapters.bitfit import BitFit
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions


class TestBitFit(StrategyContract):
    strategy = "bitfit"
    backbones = (*StrategyContract.backbones, NextItNet)


def build(backbone: Backbone | None = None) -> BitFit:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12)) if backbone is None else backbone
    return BitFit(backbone, ItemTask(backbone.dim, 9))


class Affine(nn.Module):
    """y = E + W E + b."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden + self.linear(hidden)


class AffineBackbone(TinyBackbone):
    _block = Affine


def test_a_step_by_hand_moves_the_bias_and_leaves_the_weight() -> None:
    backbone = AffineBackbone(20, 12, TinyBackbone.Options(dim=1, num_blocks=1))
    layer = backbone.blocks[0].linear
    for tensor, value in ((backbone.item_embedding.weight, 3.0), (layer.weight, 2.0), (layer.bias, 0.5)):
        nn.init.constant_(tensor, value)
    strategy = build(backbone).train()
    vector = backbone.user_vectors(torch.tensor([[7]]))
    assert vector.item() == 9.5  # 3 + 2 · 3 + 0.5
    vector.sum().backward()
    torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.25).step()
    assert (layer.weight.item(), layer.bias.item()) == (2.0, 0.25)  # the derivative of the vector by b is 1
    assert backbone.user_vectors(torch.tensor([[7]])).item() == 9.25
    assert strategy.trained_state().keys() == {"backbone.blocks.0.linear.bias", "task.head.weight", "task.head.bias"}


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 9), num_blocks=st.integers(1, 3))
def test_it_trains_two_biases_per_tiny_block_for_any_shape(dim: int, num_blocks: int) -> None:
    strategy = build(TinyBackbone(20, 12, TinyBackbone.Options(dim=dim, num_blocks=num_blocks)))
    assert strategy.num_parameters()[0] == 2 * num_blocks * dim + 9 * (dim + 1)
    assert strategy.frozen_stages == 1  # the embedding


@pytest.mark.parametrize(
    ("backbone", "biases"),
    [
        (
            NextItNet(20, 12, NextItNetOptions(dim=4, num_blocks=1)),
            {"conv1.bias", "norm1.bias", "conv2.bias", "norm2.bias"},
        ),
        (
            AttentionBackbone(20, 12, TinyBackbone.Options(num_blocks=1)),
            {"attention.in_proj_bias", "attention.out_proj.bias", "feedforward.bias"},
        ),
    ],
    ids=["nextitnet", "attention"],
)
def test_it_trains_the_biases_whatever_they_are_called(backbone: Backbone, biases: set[str]) -> None:
    assert build(backbone).trained_state().keys() == {
        *(f"backbone.blocks.0.{bias}" for bias in biases),
        "task.head.weight",
        "task.head.bias",
    }


def test_biases_outside_of_the_blocks_train_too() -> None:
    assert "backbone.norm.bias" in build(GlobalBackbone(20, 12)).trained_state()


def test_training_computes_what_evaluation_does_dropout_and_statistics_rest() -> None:
    strategy, batch = build(randomise(BufferedBackbone(20, 12))), random_batch()
    expected = strategy.eval().encode(batch).vectors
    assert torch.equal(strategy.train().encode(batch).vectors, expected)


def test_the_merged_backbone_is_the_backbone() -> None:
    strategy, sequence = build(), random_sequence(3, 6, 20)
    randomise(strategy, seed=1)
    merged = strategy.merged_backbone()
    assert merged is not strategy.backbone
    assert torch.equal(merged(sequence), strategy.backbone(sequence))


def test_blocks_without_biases_are_refused_with_what_would_do() -> None:
    with pytest.raises(PluginError, match=r"the blocks of GruBackbone have none; use a strategy .* e\.g\. lora"):
        build(GruBackbone(20, 12))


def test_it_has_no_options() -> None:
    with pytest.raises(OptionError, match=r"no option strategy\.scales"):
        resolve(BitFit.Options, {"scales": True}, "strategy")


def test_the_biases_alone_learn_what_a_user_likes() -> None:
    strategy, batch = build(), random_batch(1)
    randomise(strategy.task).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in strategy.parameters() if p.requires_grad], 0.02)
    strategy.train()
    first = strategy(batch).item()
    for _ in range(100):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert strategy(batch).item() < 0.5 * first

"""PyTorch's nn.TransformerEncoder: its fast path, its norms, and strategies on it."""

from __future__ import annotations

import copy

import pytest
import torch
from foreign_models import DIM, MAX_LENGTH, NUM_ITEMS, Encoder, WrappedEncoder
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.layers import rolled
from finetune_kit.plugins import installed
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import BackboneContract, StrategyContract, random_batch, random_sequence, randomise
from finetune_kit.testing.backbone_contract import MAX_LENGTH as CONTRACT_LENGTH
from finetune_kit.wrapping import wrap
from ftkit_baselines.peterrec import Adapter


class TestWrappedEncoder(BackboneContract):
    def make(self) -> Backbone:
        return randomise(WrappedEncoder(NUM_ITEMS, CONTRACT_LENGTH)).eval()


class EncoderContract(StrategyContract):
    backbones = [WrappedEncoder]  # noqa: RUF012


class TestFinetuneLast1(EncoderContract):
    strategy = "finetune-last1"


class TestUafHard(EncoderContract):
    strategy = "uaf-hard"


class TestPeterRec(EncoderContract):
    strategy = "peterrec"


def build(name: str, backbone: Backbone, **options: object) -> Strategy:
    component = installed().component("strategy", name)
    strategy = component.load()
    return strategy(backbone, ItemTask(backbone.dim, 9), strategy.Options(**{**component.preset, **options}))


def wrapped(module: nn.Module, **how: object) -> Backbone:
    return wrap(
        module,
        embedding="items",
        blocks="encoder.layers",
        finish="encoder.norm",
        padding="right",
        max_length=MAX_LENGTH,
        **how,
    )


def at_items(module: nn.Module, sequence: Tensor) -> Tensor:
    """Return what a model says of each item, padding on its right, ``(items, dim)``."""
    arranged = rolled(sequence, (sequence == 0).sum(dim=1))
    return module(arranged)[arranged != 0]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_evaluation_computes_what_the_encoder_computes(norm_first: bool, with_gradients: bool) -> None:
    module = randomise(Encoder(norm_first=norm_first)).eval()
    sequence = random_sequence(5, 11, NUM_ITEMS)
    backbone = wrapped(module).eval()
    with torch.set_grad_enabled(with_gradients):
        expected, found = at_items(module, sequence), backbone(sequence)[sequence != 0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


class KeyPadding(Encoder):
    """Sees later items, has no mask but for padding: what the fast path was made for."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(self.items(ids), src_key_padding_mask=ids == 0)


@torch.no_grad()
def test_the_fast_path_is_not_taken_and_padding_keeps_its_places() -> None:
    module = randomise(KeyPadding()).eval()
    sequence = random_sequence(5, 11, NUM_ITEMS)
    assert module.encoder.use_nested_tensor
    with pytest.warns(UserWarning, match="nested tensors"):  # the model itself takes it
        expected = at_items(module, sequence)
    backbone = wrapped(module, is_causal=False).eval()
    torch.testing.assert_close(backbone(sequence)[sequence != 0], expected, atol=1e-5, rtol=1e-5)
    assert backbone(sequence).shape == (5, 11, DIM)
    assert module.encoder.use_nested_tensor, "the model itself may go on taking it"


@torch.no_grad()
def test_a_patch_acts_in_evaluation() -> None:
    backbone, sequence = randomise(WrappedEncoder(NUM_ITEMS, MAX_LENGTH)).eval(), random_sequence(5, 11, NUM_ITEMS)
    before = backbone(sequence)
    strategy = build("peterrec", backbone).eval()
    torch.testing.assert_close(strategy.backbone(sequence), before)
    for part in strategy.backbone.modules():
        if isinstance(part, Adapter):
            randomise(part)
    assert not torch.allclose(strategy.backbone(sequence), before, atol=1e-2)


def test_the_class_s_options_make_the_model() -> None:
    options = WrappedEncoder.Options(num_blocks=3)
    assert len(WrappedEncoder(NUM_ITEMS, MAX_LENGTH, options).blocks) == 3


@pytest.mark.parametrize("name", ["finetune-last1", "uaf-hard", "peterrec"])
def test_a_copy_of_a_strategy_s_backbone_is_independent(name: str) -> None:
    batch = random_batch(4, 9, NUM_ITEMS, 9)
    strategy = build(name, randomise(WrappedEncoder(NUM_ITEMS, MAX_LENGTH))).eval()
    other = copy.deepcopy(strategy)
    expected = strategy.encode(batch).vectors
    randomise(strategy, seed=3)
    assert not torch.allclose(strategy.encode(batch).vectors, expected, atol=1e-3)
    assert torch.equal(other.encode(batch).vectors, expected)
    assert not {tensor.data_ptr() for tensor in strategy.parameters()} & {t.data_ptr() for t in other.parameters()}


class Normalised(nn.Module):
    """A model with BatchNorm and dropout in its blocks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.dropout = nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.5)

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + self.dropout(self.norm(self.linear(hidden).transpose(1, 2)).transpose(1, 2))

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS + 1, DIM)
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.items(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def test_frozen_blocks_keep_their_statistics_and_drop_nothing() -> None:
    backbone = wrap(Normalised(), embedding="items", blocks="blocks", max_length=MAX_LENGTH)
    strategy = build("finetune-last1", backbone).train()
    batch, before = random_batch(6, 9, NUM_ITEMS, 9), copy.deepcopy(strategy.state_dict())
    strategy(batch)
    changed = {name for name, value in strategy.state_dict().items() if not torch.equal(value, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"backbone.blocks.2.block.norm.{name}" for name in statistics}
    first, second, last = strategy.backbone.blocks
    hidden, context = strategy.backbone.start(batch.sequence)
    for block in (first, second):
        assert torch.equal(block(hidden, context), block(hidden, context))
    assert not torch.equal(last(hidden, context), last(hidden, context))


def test_gradients_reach_what_stands_before_the_blocks() -> None:
    backbone = randomise(WrappedEncoder(NUM_ITEMS, MAX_LENGTH))
    backbone.user_vectors(random_sequence(5, 11, NUM_ITEMS)).sum().backward()
    assert backbone.item_embedding.weight.grad is not None
    assert backbone.get_parameter("module.places.weight").grad.any()

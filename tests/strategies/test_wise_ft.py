from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import small_runner
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import (
    BufferedBackbone,
    StrategyContract,
    TinyBackbone,
    random_batch,
    random_sequence,
    randomise,
    tiny_backbones,
)
from finetune_kit.training.assemble import load_run
from ftkit_backbones.nextitnet import NextItNet
from ftkit_baselines.finetune import FinetuneAll
from ftkit_schedules.wise_ft import WiseFt, WiseFtOptions


class TestWiseFt(StrategyContract):
    strategy = "wise-ft"
    backbones = (*StrategyContract.backbones, NextItNet)


class TestWiseFtThatIsFinetuneAll(StrategyContract):
    strategy = "wise-ft"
    options = {"alpha": 1}  # noqa: RUF012  (as in a plugin author's test)
    backbones = (BufferedBackbone,)


def tiny(backbone: type[TinyBackbone] = TinyBackbone, **sizes: int) -> TinyBackbone:
    return randomise(backbone(20, 12, TinyBackbone.Options(**sizes)))


def make(strategy: type[Strategy], backbone: Backbone, **options: object) -> Strategy:
    torch.manual_seed(0)
    filled = resolve(strategy.Options, options, "strategy")
    return strategy(backbone, ItemTask(backbone.dim, 9), filled).eval()


def build(backbone: Backbone | None = None, **options: object) -> WiseFt:
    return make(WiseFt, tiny() if backbone is None else backbone, **options)


def train(strategy: Strategy, steps: int = 3) -> float:
    """Train on one batch, as the loop does; return the loss in evaluation mode."""
    batch, optimizer = random_batch(8), torch.optim.Adam(strategy.parameters(), 0.02, fused=True)
    torch.manual_seed(1)  # dropout
    strategy.train()
    for _ in range(steps):
        strategy(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return strategy.eval()(batch).item()


@torch.no_grad()
def test_one_weight_by_hand() -> None:
    strategy = build(alpha=0.25)
    weight = strategy.backbone.item_embedding.weight
    start = weight[5, 1].item()
    weight[5, 1] += 2.0
    merged = strategy.merged_backbone().item_embedding.weight
    assert merged[5, 1].item() == pytest.approx(0.75 * start + 0.25 * (start + 2.0))
    assert merged[5, 1].item() == pytest.approx(start + 0.5)
    assert weight[5, 1].item() == pytest.approx(start + 2.0)  # θ¹ itself stays
    assert torch.equal(merged[6], weight[6])


@pytest.mark.parametrize("backbone", tiny_backbones())
def test_alpha_0_is_the_pretrained_backbone_bit_for_bit(backbone: type[TinyBackbone]) -> None:
    strategy, batch = build(tiny(backbone), alpha=0), random_batch()
    train(strategy)
    pretrained = tiny(backbone).eval()
    assert torch.equal(strategy.encode(batch).vectors, pretrained.user_vectors(batch.sequence))
    merged = strategy.merged_backbone().state_dict()
    floating = [name for name in merged if merged[name].is_floating_point()]
    assert all(torch.equal(merged[name], pretrained.state_dict()[name]) for name in floating)


@pytest.mark.parametrize("backbone", tiny_backbones())
def test_alpha_1_is_finetune_all_bit_for_bit(backbone: type[TinyBackbone]) -> None:
    strategy, other, batch = build(tiny(backbone), alpha=1), make(FinetuneAll, tiny(backbone)), random_batch()
    assert train(strategy) == train(other)
    assert torch.equal(strategy.encode(batch).vectors, other.encode(batch).vectors)
    merged, plain = strategy.merged_backbone().state_dict(), other.merged_backbone().state_dict()
    assert merged.keys() == plain.keys()
    assert all(torch.equal(merged[name], plain[name]) for name in plain)


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_whatever_alpha_training_is_finetune_alls(alpha: float) -> None:
    strategy, other = build(alpha=alpha), make(FinetuneAll, tiny())
    train(strategy), train(other)
    assert strategy.trained_state().keys() == other.trained_state().keys()
    assert all(torch.equal(tensor, other.trained_state()[name]) for name, tensor in strategy.trained_state().items())


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 9), num_blocks=st.integers(1, 3), length=st.integers(1, 6), alpha=st.floats(0, 1, width=32))
def test_every_weight_lies_between_for_any_shape(dim: int, num_blocks: int, length: int, alpha: float) -> None:
    start, strategy = tiny(dim=dim, num_blocks=num_blocks), build(tiny(dim=dim, num_blocks=num_blocks), alpha=alpha)
    randomise(strategy.backbone, seed=1)
    merged = strategy.merged_backbone()
    for name, tensor in merged.state_dict().items():
        expected = (1 - alpha) * start.state_dict()[name] + alpha * strategy.backbone.state_dict()[name]
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)
    batch = random_batch(3, length)
    assert torch.equal(strategy.encode(batch).vectors, merged.user_vectors(batch.sequence))


class Tied(TinyBackbone):
    """Two blocks that share a layer."""

    def __init__(self, num_items: int, max_length: int, options: object = None) -> None:
        super().__init__(num_items, max_length, options)
        self.blocks[1].mix = self.blocks[0].mix


@torch.no_grad()
def test_a_weight_that_two_blocks_share_is_interpolated_once() -> None:
    strategy = build(tiny(Tied), alpha=0.5)
    weight = strategy.backbone.blocks[0].mix.here.weight
    start = weight.clone()
    nn.init.zeros_(weight)
    merged = strategy.merged_backbone()
    assert merged.blocks[1].mix is merged.blocks[0].mix
    torch.testing.assert_close(merged.blocks[1].mix.here.weight, start / 2)


def test_a_merged_backbone_is_plain_and_its_own() -> None:
    strategy, sequence = build(), random_sequence(3, 6, 20)
    train(strategy)
    merged = strategy.merged_backbone()
    assert merged.state_dict().keys() == tiny().state_dict().keys()
    before = merged.user_vectors(sequence)
    train(strategy)
    assert torch.equal(merged.user_vectors(sequence), before)


def test_evaluation_follows_whatever_changes_the_weights_and_computes_them_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strategy, batch, merges = build(), random_batch(), []
    merged_backbone = WiseFt.merged_backbone
    monkeypatch.setattr(WiseFt, "merged_backbone", lambda self: merges.append(1) or merged_backbone(self))

    def vectors() -> Tensor:
        found = [strategy.encode(batch).vectors for _ in range(3)]
        expected = merged_backbone(strategy).user_vectors(batch.sequence)
        assert all(torch.equal(each, expected) for each in found)
        return expected

    start, state = vectors(), {name: tensor.clone() for name, tensor in strategy.trained_state().items()}
    assert len(merges) == 1
    train(strategy)
    assert not torch.equal(vectors(), start)
    strategy.load_trained_state(state)
    assert torch.equal(vectors(), start)
    strategy.load_state_dict({name: tensor + 1.0 for name, tensor in strategy.state_dict().items()})
    assert not torch.equal(vectors(), start)
    with torch.no_grad():
        strategy.backbone.blocks[0].mix.here.weight.mul_(2)
    vectors()
    assert strategy.to(torch.float64) is strategy
    assert vectors().dtype == torch.float64


def test_half_way_it_learns_too() -> None:
    strategy = build()
    first = strategy(random_batch(8)).item()
    assert train(strategy, steps=60) < 0.5 * first


def test_a_saved_run_is_evaluated_at_any_alpha(tmp_path: Path) -> None:
    made = small_runner(tmp_path / "data", "wise-ft", 2, {"alpha": 0.3})
    base = made.pretrain(tmp_path)
    made.finetune(tmp_path / "run", base)
    assert WiseFt.evaluation_options == {"alpha"}
    other = small_runner(tmp_path / "data", "finetune-all", 2, {})
    alphas = {
        alpha: load_run(tmp_path / "run", made.dataset, options={"alpha": alpha}).strategy for alpha in (0, 0.3, 1)
    }
    pretrained = other.build_strategy(base).eval()
    batch = random_batch(num_items=made.dataset.num_source_items)
    vectors = {alpha: strategy.encode(batch).vectors for alpha, strategy in alphas.items()}
    assert torch.equal(vectors[0], pretrained.encode(batch).vectors)
    assert torch.equal(vectors[1], alphas[0].backbone.user_vectors(batch.sequence))
    assert torch.equal(vectors[0.3], load_run(tmp_path / "run", made.dataset).strategy.encode(batch).vectors)
    assert not torch.allclose(vectors[0.3], vectors[0]) and not torch.allclose(vectors[0.3], vectors[1])


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 1.1}, {"alhpa": 1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        resolve(WiseFtOptions, options, "strategy")

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import whole_and_resumed

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Batch
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import BufferedBackbone, StrategyContract, TinyBackbone, random_batch, randomise
from ftkit_baselines.finetune import FinetuneAll, FinetuneCls
from ftkit_schedules.lp_ft import LpFt, LpFtOptions


class TestLpFt(StrategyContract):
    strategy = "lp-ft"
    num_epochs = LpFtOptions().probe_epochs + 1


def tiny(backbone: type[TinyBackbone] = TinyBackbone, **sizes: int) -> TinyBackbone:
    return randomise(backbone(20, 12, TinyBackbone.Options(**sizes)))


def build(backbone: Backbone | None = None, **options: object) -> LpFt:
    return make(LpFt, backbone, options=resolve(LpFtOptions, options, "strategy"))


def make(strategy: type[Strategy], backbone: Backbone | None = None, **arguments: object) -> Strategy:
    torch.manual_seed(0)
    backbone = tiny() if backbone is None else backbone
    return strategy(backbone, ItemTask(backbone.dim, 9), **arguments)


def train(strategy: Strategy, epochs: range, learning_rate: float = 0.02, weight_decay: float = 0.0) -> float:
    """Train ten steps an epoch on one batch, with a new optimizer; return the last loss."""
    batch = random_batch(8)
    optimizer = torch.optim.Adam(strategy.parameters(), learning_rate, weight_decay=weight_decay)
    for epoch in epochs:
        torch.manual_seed(epoch)  # dropout
        strategy.start_epoch(epoch)
        strategy.train()
        for _ in range(10):
            loss = strategy(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()


def same(one: Strategy, other: Strategy) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def test_a_step_of_each_phase_by_hand() -> None:
    strategy = build(probe_epochs=1)
    torch.nn.init.zeros_(strategy.task.head.weight)
    one = torch.tensor([0])
    batch = Batch(one, torch.tensor([[0, 3, 4]]), one, positive=torch.tensor([2]), negative=torch.tensor([[5]]))
    h = strategy.backbone.user_vectors(batch.sequence)[0].detach()
    optimizer, losses, moved = torch.optim.SGD(strategy.parameters(), 0.1), [], []
    for epoch in (1, 2):
        before = strategy.backbone.item_embedding.weight[4].clone()
        strategy.start_epoch(epoch)
        losses.append(strategy(batch))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        moved.append(not torch.equal(strategy.backbone.item_embedding.weight[4], before))
    # L = −log σ(o₊ − o₋), at first log 2 with derivative ∓1/2 by o₊ and o₋, so one step makes v₊ = −v₋ = 0.05 (h, 1);
    # over the same features B⁰ then o₊ − o₋ = 0.1 (‖h‖² + 1)
    assert losses[0].item() == pytest.approx(math.log(2))
    assert losses[1].item() == pytest.approx(math.log1p(math.exp(-0.1 * (h.square().sum().item() + 1))))
    assert moved == [False, True]


@pytest.mark.parametrize("backbone", [TinyBackbone, BufferedBackbone])
def test_the_probe_is_finetune_cls_bit_for_bit_whatever_decays(backbone: type[TinyBackbone]) -> None:
    strategy, other = build(tiny(backbone), probe_epochs=3), make(FinetuneCls, tiny(backbone))
    for each in (strategy, other):
        train(each, range(1, 4), weight_decay=0.1)
    assert same(strategy, other)


@pytest.mark.parametrize("backbone", [TinyBackbone, BufferedBackbone])
def test_after_the_probe_it_is_finetune_all_from_there_bit_for_bit(backbone: type[TinyBackbone]) -> None:
    strategy = build(tiny(backbone), probe_epochs=2)
    train(strategy, range(1, 3))
    other = make(FinetuneAll, tiny(backbone))
    other.load_state_dict(strategy.state_dict())
    for each in (strategy, other):
        train(each, range(3, 5))
    assert same(strategy, other)


@settings(max_examples=30, deadline=None)
@given(
    dim=st.integers(1, 9),
    num_blocks=st.integers(1, 3),
    probe_epochs=st.integers(1, 5),
    epochs=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_what_trains_is_a_function_of_the_epoch_alone_for_any_shape(
    dim: int, num_blocks: int, probe_epochs: int, epochs: list[int]
) -> None:
    strategy = build(tiny(dim=dim, num_blocks=num_blocks), probe_epochs=probe_epochs)
    assert strategy.schedule_epochs == probe_epochs
    for epoch in epochs:
        strategy.start_epoch(epoch)
        names = {name for name, parameter in strategy.named_parameters() if parameter.requires_grad}
        assert names == ({"task.head.weight", "task.head.bias"} if epoch <= probe_epochs else {*strategy.state_dict()})
        assert strategy.trained_state().keys() == strategy.state_dict().keys()
        assert strategy.frozen_stages == 0


def test_it_learns_and_more_than_the_probe_alone() -> None:
    strategy = build(probe_epochs=1)
    probed = train(strategy, range(1, 2))
    assert train(strategy, range(2, 5)) < 0.5 * probed < 0.5 * 0.69


def test_a_best_epoch_of_the_probe_is_told() -> None:
    strategy = build(probe_epochs=3)
    assert strategy.remarks(4) == []
    assert strategy.remarks(3) == ["the best epoch, 3, is one of the 3 of the probe: the backbone is as pre-trained"]


@pytest.mark.parametrize("crash_in", [2, 3])
def test_a_run_interrupted_before_or_at_the_end_of_the_probe_goes_on_to_the_same_weights(
    tmp_path: Path, crash_in: int
) -> None:
    whole, resumed = whole_and_resumed(tmp_path, "lp-ft", epochs=5, crash_in=crash_in, probe_epochs=3)
    assert resumed == whole
    assert whole[0]["epochs"] >= 4  # patience, 1, counts from the first epoch of fine-tuning


@pytest.mark.parametrize("options", [{"probe_epochs": 0}, {"probe_epoch": 1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        build(**options)

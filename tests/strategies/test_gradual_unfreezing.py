from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import whole_and_resumed

from finetune_kit.backbone import Backbone
from finetune_kit.errors import OptionError
from finetune_kit.options import resolve
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import (
    BufferedBackbone,
    GlobalBackbone,
    StrategyContract,
    TinyBackbone,
    random_batch,
    randomise,
)
from ftkit_schedules.gradual_unfreezing import GradualUnfreezing, GradualUnfreezingOptions


class TestGradualUnfreezing(StrategyContract):
    strategy = "gradual-unfreezing"
    num_epochs = 4  # head, two blocks, all


def build(backbone: Backbone | None = None, **options: object) -> GradualUnfreezing:
    torch.manual_seed(0)
    backbone = randomise(TinyBackbone(20, 12)) if backbone is None else backbone
    task = ItemTask(backbone.dim, 9)
    return GradualUnfreezing(backbone, task, resolve(GradualUnfreezingOptions, options, "strategy"))


def tiny(num_blocks: int, backbone: type[TinyBackbone] = TinyBackbone) -> TinyBackbone:
    return randomise(backbone(20, 12, TinyBackbone.Options(num_blocks=num_blocks)))


def part(name: str) -> str:
    """Return ``block k``, ``head`` or ``outside`` for the name of a tensor."""
    if name.startswith("task."):
        return "head"
    return f"block {name.split('.')[2]}" if ".blocks." in name else "outside"


def awake(strategy: Strategy) -> set[str]:
    return {part(name) for name, parameter in strategy.named_parameters() if parameter.requires_grad}


def test_the_phases_by_hand() -> None:
    strategy = build(tiny(3), epochs_per_block=2)
    phases = []
    for epoch in range(1, 11):
        strategy.start_epoch(epoch)
        phases.append(awake(strategy))
    head, last, two, all_blocks = {"head"}, {"block 2"}, {"block 1", "block 2"}, {"block 0", "block 1", "block 2"}
    expected = [head, head | last, head | two, head | all_blocks, head | all_blocks | {"outside"}]
    assert phases == [phase for phase in expected for _ in range(2)]
    assert strategy.schedule_epochs == 8


@settings(max_examples=40, deadline=None)
@given(num_blocks=st.integers(1, 5), epochs_per_block=st.integers(1, 4), epochs=st.permutations(range(1, 30)))
def test_what_is_awake_is_a_function_of_the_epoch_alone(
    num_blocks: int, epochs_per_block: int, epochs: list[int]
) -> None:
    strategy = build(tiny(num_blocks), epochs_per_block=epochs_per_block)
    for epoch in epochs:
        strategy.start_epoch(epoch)
        num_awake = sum(name.startswith("block") for name in awake(strategy))
        assert num_awake == min((epoch - 1) // epochs_per_block, num_blocks)
        assert ("outside" in awake(strategy)) == (epoch > strategy.schedule_epochs)


def test_in_each_epoch_exactly_what_is_due_changes_buffers_and_weight_decay_included() -> None:
    strategy = build(tiny(2, BufferedBackbone))
    optimizer = torch.optim.Adam(strategy.parameters(), 0.01, weight_decay=0.1)
    changed = []
    for epoch in range(1, 5):
        before = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
        strategy.start_epoch(epoch)
        strategy.train()(random_batch(seed=epoch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        now = strategy.state_dict()
        changed.append({name for name in now if not torch.equal(now[name], before[name])})
    parts = [{part(name) for name in names} for names in changed]
    everything = {"head", "block 0", "block 1", "outside"}
    assert parts == [{"head"}, {"head", "block 1"}, {"head", "block 0", "block 1"}, everything]
    buffers = {f"backbone.blocks.1.{name}" for name in ("num_steps", "centre.mean")}
    assert not buffers & changed[0]
    assert buffers <= changed[1]


def test_dropout_of_a_block_begins_with_its_phase() -> None:
    strategy = build(tiny(2, BufferedBackbone)).train()
    for epoch, expected in enumerate([[False, False], [False, True], [True, True], [True, True]], start=1):
        strategy.start_epoch(epoch)
        assert [block.dropout.training for block in strategy.backbone.blocks] == expected
    assert not any(module.training for module in strategy.eval().modules())


def test_what_stands_outside_of_the_blocks_comes_last_and_the_mask_vector_never() -> None:
    strategy = build(randomise(GlobalBackbone(20, 12)))
    for epoch, trains in ((3, False), (4, True)):
        strategy.start_epoch(epoch)
        assert strategy.backbone.norm.weight.requires_grad is trains
        assert strategy.backbone.item_embedding.weight.requires_grad is trains
        assert not strategy.backbone.mask_vector.requires_grad


def test_the_facts_are_the_same_in_every_epoch() -> None:
    strategy, facts = build(), set()
    for epoch in range(1, 5):
        facts.add((strategy.frozen_stages, strategy.num_parameters(), tuple(strategy.trained_state())))
        strategy.start_epoch(epoch)
    assert len(facts) == 1
    assert strategy.frozen_stages == 0
    assert strategy.num_parameters()[0] == strategy.num_parameters()[1]


def test_it_learns_what_users_like() -> None:
    strategy, batch = build(), random_batch(8)
    optimizer = torch.optim.Adam(strategy.parameters(), 0.02)
    strategy.train()
    first, losses = strategy(batch).item(), []
    for epoch in range(1, 5):
        strategy.start_epoch(epoch)
        for _ in range(20):
            loss = strategy(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.3 * first


def test_a_best_epoch_within_the_schedule_is_told_with_what_had_been_trained() -> None:
    strategy = build(tiny(3), epochs_per_block=2)
    assert strategy.remarks(9) == []
    assert strategy.remarks(5) == [
        "the best epoch, 5, lies in the schedule of 8 epochs: until then only the head and the last 2 of 3 blocks have "
        "been trained"
    ]


@pytest.mark.parametrize("crash_in", [1, 3])
def test_a_run_interrupted_within_the_schedule_goes_on_to_the_same_weights(tmp_path: Path, crash_in: int) -> None:
    whole, resumed = whole_and_resumed(tmp_path, "gradual-unfreezing", epochs=5, crash_in=crash_in)
    assert resumed == whole
    assert whole[0]["epochs"] >= 4  # patience, 1, lets everything have its turn


@pytest.mark.parametrize("options", [{"epochs_per_block": 0}, {"epochs_per_layer": 1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        build(**options)

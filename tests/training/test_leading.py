"""What is known of still stages takes their place, and changes no number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import runner, whole_run
from torch import Tensor

from finetune_kit.backbone import Backbone
from finetune_kit.data.dataset import Dataset
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.sections import Pooling
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import TinyBackbone, backbones, installed_backbone, random_batch, randomise
from finetune_kit.testing.frozen import cached_stages
from finetune_kit.training.leading import LeadingStages

OFF = {"cache": "off"}
BATCH = random_batch(num_users=6)


def made_of(name: str, backbone: Backbone, **options: Any) -> Strategy:
    component = installed().component("strategy", name)
    strategy = component.load()
    return strategy(backbone, ItemTask(backbone.dim, 9), resolve(strategy.Options, options, "strategy"))


def tiny(name: str, **options: Any) -> Strategy:
    return made_of(name, randomise(TinyBackbone(20, 12)), **options)


def known(strategy: Strategy, folder: Path) -> LeadingStages:
    return cached_stages(strategy, [BATCH], folder / "cache")


# The backbone


@given(backbones(), st.data(), st.sampled_from(["last", "mean"]))
def test_going_on_after_any_stage_gives_the_same_vectors(backbone: Backbone, data: st.DataObject, pooling: Pooling):
    num_stages = data.draw(st.integers(1, len(backbone.blocks) + 1))
    leading = backbone.lead(BATCH.sequence, num_stages, pooling=pooling)
    found = backbone.user_vectors(BATCH.sequence, pooling=pooling, leading=leading)
    assert torch.equal(found, backbone.user_vectors(BATCH.sequence, pooling=pooling))


@pytest.mark.parametrize("name", installed().components("backbone"))
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_it_does_on_every_built_in_backbone(name: str, num_stages: int) -> None:
    heads = {"num_heads": 2} if name == "transformers" else {}
    backbone = randomise(installed_backbone(name, dim=8, num_blocks=2, **heads)(20, 12)).eval()
    found = backbone.user_vectors(BATCH.sequence, leading=backbone.lead(BATCH.sequence, num_stages))
    torch.testing.assert_close(found, backbone.user_vectors(BATCH.sequence), atol=1e-6, rtol=1e-6)


def test_only_the_positions_that_the_other_blocks_need_are_kept() -> None:
    backbone = installed_backbone("nextitnet", dim=8, num_blocks=4)(20, 50).eval()
    length = torch.arange(50).remainder(20).add(1).expand(3, -1)
    # the last block sees 0, 4, 8, … before the last position, through dilations 4 and 8
    assert backbone.lead(length, 4).hidden.shape == (3, 7, 8)
    assert backbone.lead(length, 4, pooling="mean").hidden.shape == (3, 50, 8)
    assert backbone.lead(length, 5).hidden.shape == (3, 8)


# Which stages


@pytest.mark.parametrize(
    ("name", "options", "still"),
    [
        ("finetune-cls", {}, 3),
        ("finetune-last1", {}, 2),
        ("finetune-last1", {"n": 2}, 1),
        ("finetune-all", {}, 0),
        ("houlsby", {}, 1),
        ("lp-ft", {}, 0),
    ],
)
def test_what_is_frozen_stands_still(name: str, options: dict[str, Any], still: int) -> None:
    strategy = tiny(name, **options)
    assert strategy.still_stages == strategy.frozen_stages == still


def test_what_rests_stands_still_until_it_wakes() -> None:
    strategy = tiny("gradual-unfreezing")
    counts = []
    for epoch in range(1, 5):
        strategy.start_epoch(epoch)
        counts.append((strategy.still_stages, strategy.frozen_stages))
    assert counts == [(3, 0), (2, 0), (1, 0), (0, 0)]


def test_what_has_only_no_gradient_does_not_count(tmp_path: Path) -> None:
    class NoGradients(Strategy):
        def build(self) -> None:
            self.backbone.requires_grad_(False)  # its dropout goes on

    strategy = NoGradients(randomise(TinyBackbone(20, 12)), ItemTask(8, 9))
    assert (strategy.frozen_stages, strategy.still_stages) == (3, 0)
    with known(strategy, tmp_path) as stages:
        assert stages(BATCH.user) is None


# What is known


def count_computing(strategy: Strategy) -> Callable[[], int]:
    calls = []
    strategy.backbone.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def test_users_are_computed_once_for_training_and_evaluation(tmp_path: Path) -> None:
    strategy = tiny("finetune-cls")
    times = count_computing(strategy)
    expected = strategy.eval().encode(BATCH).vectors
    with known(strategy, tmp_path) as stages:
        for mode in (True, False, True):
            assert torch.equal(strategy.train(mode).encode(BATCH).vectors, expected)
        assert stages.num_rounds == 1
    assert times() == 2
    strategy.encode(BATCH)  # outside, it asks nobody
    assert times() == 3


def test_users_come_in_the_order_in_which_they_are_asked_for(tmp_path: Path) -> None:
    strategy = tiny("finetune-last1").eval()
    rows = torch.tensor([4, 0, 2])
    with known(strategy, tmp_path):
        found = strategy.encode(replace(BATCH, user=BATCH.user[rows], sequence=BATCH.sequence[rows])).vectors
    torch.testing.assert_close(found, strategy.encode(BATCH).vectors[rows], atol=1e-6, rtol=1e-6)


def test_what_is_known_is_forgotten_when_the_stages_change(tmp_path: Path) -> None:
    strategy = tiny("lp-ft", probe_epochs=1)
    strategy.start_epoch(1)
    with known(strategy, tmp_path) as stages:
        before = strategy.encode(BATCH).vectors
        with torch.no_grad():
            strategy.backbone.blocks[0].norm.weight.mul_(2)  # as when the best epoch's weights are loaded
        after = strategy.eval().encode(BATCH).vectors
        assert stages.num_rounds == 2
        strategy.start_epoch(2)
        assert stages(BATCH.user) is None
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, strategy.encode(BATCH).vectors, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("memory", [0, 1])
def test_what_does_not_fit_is_on_disk_for_as_long_as_it_is_of_use(memory: int, tmp_path: Path) -> None:
    strategy, file = tiny("finetune-last1").eval(), tmp_path / "last" / "cache"
    expected = strategy.encode(BATCH).vectors
    stages = LeadingStages(strategy, BATCH.user.numpy(), lambda _: BATCH.sequence.numpy(), memory, file)
    with pytest.raises(KeyboardInterrupt), stages:
        assert torch.equal(strategy.encode(BATCH).vectors, expected)
        assert file.exists() == (memory == 0)
        raise KeyboardInterrupt
    assert not file.exists()
    assert strategy.leading is None


def test_training_in_lower_precision_keeps_what_it_computes(tmp_path: Path) -> None:
    for name in ("finetune-cls", "finetune-last1"):
        strategy = tiny(name)
        with torch.autocast("cpu", torch.bfloat16), known(strategy, tmp_path):
            found = strategy.encode(BATCH).vectors
        with torch.autocast("cpu", torch.bfloat16):
            expected = strategy.encode(BATCH).vectors
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


# Whole runs


@pytest.mark.parametrize("backbone", ["nextitnet", "sasrec"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("finetune-cls", {}),
        ("finetune-last1", {}),
        ("finetune-last1", {"n": 2}),
        ("lp-ft", {"probe_epochs": 2}),
        ("gradual-unfreezing", {}),
        ("houlsby", {}),
    ],
)
def test_a_run_is_the_same_with_and_without_a_cache(
    name: str, options: dict[str, int], backbone: str, dataset: Dataset, bases: Path, tmp_path: Path
) -> None:
    sections = {"run": {"backbone": backbone}, "backbone": {"num_blocks": 3}, "strategy": options}
    found, cached = whole_run(runner(dataset, name, finetune={"epochs": 3}, **sections), tmp_path / "on", bases)
    expected, plain = whole_run(
        runner(dataset, name, finetune={"epochs": 3, **OFF}, **sections), tmp_path / "off", bases
    )
    _assert_same(cached, plain)
    assert found["test"]["full"] == pytest.approx(expected["test"]["full"], abs=1e-6)
    assert not list(cached.rglob("*.bin"))


@pytest.mark.parametrize(
    ("name", "times"), [("finetune-cls", 1), ("finetune-last1", 1), ("lp-ft", 1), ("finetune-all", 0)]
)
def test_a_run_computes_all_users_once_while_blocks_stand_still(
    name: str, times: int, dataset: Dataset, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, lead = [], Backbone.lead
    monkeypatch.setattr(Backbone, "lead", lambda *args, **more: calls.append(1) or lead(*args, **more))
    options = {"strategy": {"probe_epochs": 2}} if name == "lp-ft" else {}
    whole_run(runner(dataset, name, finetune={"epochs": 3}, **options), tmp_path, bases)
    assert len(calls) == times  # the 60 users are computed together


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"task": "label:kind"}},
        {"finetune": {"cache_memory": 0}},
        {"finetune": {"pooling": "mean", "batching": "instances"}},
        {"data": {"max_length": 8, "fraction": 0.5}},
    ],
)
@pytest.mark.parametrize("name", ["finetune-cls", "finetune-last1"])
def test_so_it_is_with_labels_on_disk_and_however_users_are_read(
    name: str, sections: dict[str, Any], dataset: Dataset, bases: Path, tmp_path: Path
) -> None:
    _, cached = whole_run(runner(dataset, name, **sections), tmp_path / "on", bases)
    off = {**sections, "finetune": {**sections.get("finetune", {}), **OFF}}
    _, plain = whole_run(runner(dataset, name, **off), tmp_path / "off", bases)
    _assert_same(cached, plain)


@pytest.mark.parametrize("name", ["finetune-last1", "lp-ft"])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    name: str, dataset: Dataset, bases: Path, tmp_path: Path
) -> None:
    class Interrupted(Exception):
        pass

    def crash(*_: object) -> None:
        raise Interrupted

    _, whole = whole_run(runner(dataset, name, finetune={"cache_memory": 0}), tmp_path / "whole", bases)
    made = runner(dataset, name, finetune={"cache_memory": 0})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("ftkit_trackers.jsonl.JsonLines.record", crash)
        whole_run(made, tmp_path / "crashed", bases)
    assert not list((tmp_path / "crashed").rglob("*.bin"))
    made.resume = True
    _, resumed = whole_run(made, tmp_path / "crashed", bases)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def _assert_same(one: Path, other: Path) -> None:
    weights: list[dict[str, Tensor]] = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert np.allclose(tensor, weights[1][name], atol=1e-6), name

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from finetune_kit.checkpoint import load_model
from finetune_kit.data.earlier import SPLIT, Earlier
from finetune_kit.data.labelled import for_task
from finetune_kit.errors import CheckpointError, DataError
from finetune_kit.plugins import installed
from finetune_kit.progress import Progress
from finetune_kit.strategy import Encoded
from finetune_kit.training.assemble import build_strategy, load_base
from finetune_kit.training.grow import Growth, earlier_parts
from ftkit_baselines.finetune import FinetuneAll
from growing import FEW, LARGE, MANY, SMALL, configured, made_base, made_run, make


class Told(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data") / "small", SMALL, FEW, users=12)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data") / "large", LARGE, MANY, users=20)


def rows(dataset, raw):
    return [dataset.raw_source_items().index(item) + 1 for item in raw]


@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_every_strategy_goes_on_and_computes_for_known_items_what_it_did(strategy, small, large, tmp_path):
    config = configured(strategy)
    run, base = made_run(tmp_path, config, small)
    growth = Growth(config, small, large)
    base = None if base is None else growth.grow_base(base, tmp_path / "bases")
    try:
        start = growth.grow_run(run, base)  # compares the scores of known items itself
    except CheckpointError as error:
        assert "is neither trained nor of the pre-trained backbone" in str(error)
        pytest.skip(f"{strategy} has parts that are drawn from the seed and kept nowhere")
    weights = None if base is None else load_base(base, config, large)
    grown = build_strategy(config, large.num_source_items, large.num_target_items, weights)
    grown.load_trained_state(start.state)
    state, was = grown.state_dict(), run.strategy.state_dict()
    common = ("c", "d", "e", "f")
    embedding = "backbone.item_embedding.weight"
    assert torch.equal(state[embedding][rows(large, common)], was[embedding][rows(small, common)])
    assert torch.equal(state["task.head.weight"][1:], was["task.head.weight"])
    assert state["task.head.weight"][0].abs().max() > 0


def test_a_grown_backbone_holds_known_rows_and_fresh_ones_that_no_other_item_started_from(small, large, tmp_path):
    config = configured("finetune-cls")
    base = made_base(tmp_path / "base", config, small)
    grown = Growth(config, small, large).grow_base(base, tmp_path / "bases")
    old, new = load_model(base)[0], load_model(grown)[0]
    assert new.keys() == old.keys()
    before, after = old["backbone.item_embedding.weight"], new["backbone.item_embedding.weight"]
    common = ("c", "d", "e", "f")
    assert torch.equal(after[rows(large, common)], before[rows(small, common)])
    fresh = after[rows(large, ("a", "dd", "g"))]
    assert ((fresh[:, None] - before[None]).abs().amax(dim=-1) > 1e-4).all()
    assert torch.equal(new["output.bias"][[1, 2, 4, 5]], old["output.bias"][1:])
    assert torch.equal(new["backbone.blocks.1.conv1.weight"], old["backbone.blocks.1.conv1.weight"])


def test_a_grown_backbone_is_made_once_and_is_the_old_one_where_the_items_are(small, large, tmp_path):
    config, told = configured("finetune-cls"), Told()
    base = made_base(tmp_path / "base", config, small)
    growth = Growth(config, small, large, told)
    folder = growth.grow_base(base, tmp_path / "bases")
    assert growth.grow_base(base, tmp_path / "bases") == folder
    assert told.lines == [f"grown backbone: {folder}", f"grown backbone: {folder} (reused)"]
    assert Growth(config, small, small).grow_base(base, tmp_path / "bases") == base
    other = dataclasses.replace(config, run=config.run.model_copy(update={"seed": 1}))
    assert Growth(other, small, large).grow_base(base, tmp_path / "bases") != folder


def test_a_grown_backbone_with_parts_is_reused_for_the_same_dataset_and_task_alone(small, large, tmp_path):
    """Its split.parquet is in the ids of one dataset; another one may have the same source items."""
    config = configured("finetune-cls")
    base = made_base(tmp_path / "base", config, small)
    whole = Earlier(small.target.user, small.target.item, np.zeros(len(small.target.user), dtype=np.int64))
    whole.write(base, SPLIT)
    other = make(tmp_path / "large", LARGE, ("r", "q", "n", "p"), users=20, first=5)
    assert (other.name, other.source_items_hash) == (large.name, large.source_items_hash)
    folders = [Growth(config, small, new).grow_base(base, tmp_path / "bases") for new in (large, other)]
    for folder, new in zip(folders, (large, other), strict=True):
        found, expected = Earlier.read(folder, SPLIT), earlier_parts(base, small, new)
        assert found is not None
        assert expected is not None
        for name in ("user", "item", "part", "gone"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_a_label_s_run_goes_on_with_more_classes(small, large, tmp_path):
    config = configured("finetune-all", run={"task": "label:kind"})
    run, base = made_run(tmp_path, config, for_task(small, "label:kind"))
    growth = Growth(config, small, large)
    start = growth.grow_run(run, growth.grow_base(base, tmp_path / "bases"))
    assert for_task(large, "label:kind").raw_target_items() == ["o-kind", "p-kind", "q-kind", "r-kind"]
    assert torch.equal(start.state["task.head.bias"][1:], run.strategy.task.head.bias)


def test_what_is_known_new_and_gone_is_told_and_strangers_are_refused(small, large, tmp_path):
    told = Told()
    Growth(configured("finetune-all"), small, large, told).refuse_strangers(with_target=True)
    assert told.lines == ["source items: 4 known, 3 new, 1 gone; target items: 3 known, 1 new, 0 gone"]
    strange = make(tmp_path / "strange", ("x", "y", "z"), FEW, users=9)
    with pytest.raises(DataError, match=r"strange and .*small have no source items in common"):
        Growth(configured("finetune-all"), small, strange).refuse_strangers(with_target=False)
    shop = make(tmp_path / "shop", SMALL, ("x", "y"), users=9)
    Growth(configured("finetune-all"), small, shop).refuse_strangers(with_target=False)
    with pytest.raises(DataError, match="have no target items in common"):
        Growth(configured("finetune-all"), small, shop).refuse_strangers(with_target=True)


def test_new_items_that_a_frozen_embedding_can_t_learn_are_warned_of(small, large, tmp_path):
    for strategy, warns in (("finetune-cls", True), ("finetune-all", False)):
        config, told = configured(strategy), Told()
        run, base = made_run(tmp_path / strategy, config, small)
        growth = Growth(config, small, large, told)
        growth.grow_run(run, growth.grow_base(base, tmp_path / strategy / "bases"))
        assert any("3 new source items keep random ones" in line for line in told.lines) == warns


def grown(strategy, monkeypatch, small, large, tmp_path):
    """Grow a run of ``finetune-all`` with a strategy of the test in its place."""
    monkeypatch.setattr("ftkit_baselines.finetune.FinetuneAll", strategy)
    config = configured("finetune-all")
    run, base = made_run(tmp_path, config, small)
    growth = Growth(config, small, large)
    return growth.grow_run(run, growth.grow_base(base, tmp_path / "bases"))


class WithPopularity(FinetuneAll):
    """Has a table over pairs of source and target items, and one weight more than there are source items twice."""

    def build(self):
        self.pairs = nn.Parameter(torch.randn(self.backbone.num_items, self.task.head.out_features))


def test_a_third_party_s_tensors_need_no_declaration(monkeypatch, small, large, tmp_path):
    start = grown(WithPopularity, monkeypatch, small, large, tmp_path)
    assert start.state["pairs"].shape == (7, 4)


class WithMaskRow(FinetuneAll):
    def build(self):
        self.table = nn.Embedding(self.backbone.num_items + 2, 3)


def test_rows_whose_place_can_t_be_known_are_refused_by_name(monkeypatch, small, large, tmp_path):
    with pytest.raises(CheckpointError, match=r"'table.weight' has 7 rows for 5 source items"):
        grown(WithMaskRow, monkeypatch, small, large, tmp_path)


class WithFrozenNoise(FinetuneAll):
    def build(self):
        self.projection = nn.Linear(4, 4)
        self.freeze(self.projection)


def test_frozen_parts_that_would_be_drawn_anew_are_refused_by_name(monkeypatch, small, large, tmp_path):
    with pytest.raises(CheckpointError, match=r"'projection\.\w+' is neither trained nor of the pre-trained backbone"):
        grown(WithFrozenNoise, monkeypatch, small, large, tmp_path)


class ByTheCatalogue(FinetuneAll):
    def build(self):
        pass

    def encode(self, batch):
        return Encoded(super().encode(batch).vectors * self.backbone.num_items)


def test_a_strategy_that_computes_something_else_with_more_items_is_refused(monkeypatch, small, large, tmp_path):
    with pytest.raises(CheckpointError, match=r"computes something else for known items: scores differ by 0\.4"):
        grown(ByTheCatalogue, monkeypatch, small, large, tmp_path)


def test_other_options_are_refused_by_the_tensor_that_differs(small, large, tmp_path):
    run, base = made_run(tmp_path, configured("peterrec", strategy={"bottleneck": 2}), small)
    growth = Growth(configured("peterrec", strategy={"bottleneck": 1}), small, large)
    with pytest.raises(CheckpointError, match=r"is \(1.*\) in the model for the new items, not \(2"):
        growth.grow_run(run, growth.grow_base(base, tmp_path / "bases"))


def test_sizes_that_are_equal_by_chance_or_permuted_mislead_nothing(tmp_path):
    """As many source items and padding as target items, and as the width; the same items under other ids."""
    old = make(tmp_path / "old", ("b", "c", "d"), ("p", "q", "r", "s"), users=12)
    new = make(tmp_path / "new", ("a", "b", "c"), ("o", "p", "q", "r"), users=12)
    config = configured("mtl")
    run, _ = made_run(tmp_path / "made", config, old)
    state, was = Growth(config, old, new).grow_run(run, None).state, run.strategy.state_dict()
    assert torch.equal(state["backbone.item_embedding.weight"][[2, 3]], was["backbone.item_embedding.weight"][[1, 2]])
    assert torch.equal(state["source_output.weight"][[1, 2]], was["source_output.weight"][[0, 1]])
    assert torch.equal(state["task.head.weight"][[1, 2, 3]], was["task.head.weight"][[0, 1, 2]])
    assert np.array_equal(state["backbone.blocks.0.conv1.weight"], was["backbone.blocks.0.conv1.weight"])

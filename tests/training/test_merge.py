import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune_kit.checkpoint import load_model
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import CheckpointError, PluginError
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.strategy import Strategy
from finetune_kit.training.assemble import load_base, load_run
from finetune_kit.training.device import make_fabric
from finetune_kit.training.merge import TOLERANCE, largest_difference, merge
from finetune_kit.training.run import Runner
from growing import MANY, SMALL, configured, make


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return make(tmp_path_factory.mktemp("data") / "small", SMALL, MANY, users=40)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


def run_of(strategy: str, dataset: Dataset, bases: Path, folder: Path) -> Path:
    runner = Runner(configured(strategy), dataset, make_fabric("cpu"))
    runner.finetune(folder, runner.pretrain(bases))
    return folder


class Scaled(nn.Module):
    """A block whose first convolution has a trained factor: what a patch is that folds into the weights."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.scale, self.reach = block, nn.Parameter(torch.ones(())), block.reach

    def folded(self) -> nn.Module:
        block = copy.deepcopy(self.block)
        with torch.no_grad():
            block.conv1.weight.mul_(self.scale)
        return block

    def forward(self, hidden, context):
        weights = {"conv1.weight": self.block.conv1.weight * self.scale}
        return torch.func.functional_call(self.block, weights, (hidden, context))


class Folding(Strategy):
    def build(self) -> None:
        self.freeze(self.backbone)
        self.backbone.blocks = nn.ModuleList(Scaled(block) for block in self.backbone.blocks)

    def merged_backbone(self):
        merged = copy.deepcopy(self.backbone)
        merged.blocks = nn.ModuleList(block.folded() for block in merged.blocks)
        return merged


class Forgetting(Folding):
    def merged_backbone(self):
        merged = super().merged_backbone()
        with torch.no_grad():
            merged.blocks[1].conv2.weight.zero_()
        return merged


class Unfolded(Folding):
    def merged_backbone(self):
        return copy.deepcopy(self.backbone)


class Failing(Folding):
    def merged_backbone(self):
        raise ZeroDivisionError("a third party's")


@pytest.mark.parametrize("strategy", ["finetune-all", "finetune-last1", "finetune-cls"])
def test_a_merged_run_scores_as_the_run_does_without_its_base(strategy, dataset, bases, tmp_path):
    (tmp_path / "bases").mkdir()
    run = load_run(run_of(strategy, dataset, tmp_path / "bases", tmp_path / "run"), dataset)
    told = merge(run, tmp_path / "merged")
    shutil.rmtree(tmp_path / "bases")
    merged = load_run(tmp_path / "merged", dataset)
    assert largest_difference(run.strategy, merged.strategy, 6) == told["difference"] == 0
    options = run.config.evaluation
    instances = dataset.target.user.argsort()[:10]
    ranks = [
        Evaluator(dataset, instances, instances[:0], options, 6, 0).evaluate(one.strategy, make_fabric("cpu")).ranks
        for one in (run, merged)
    ]
    assert ranks[0]["full"].tolist() == ranks[1]["full"].tolist()


def test_a_patch_that_folds_into_the_weights_is_merged(dataset, bases, tmp_path, monkeypatch):
    monkeypatch.setattr("ftkit_baselines.finetune.FinetuneAll", Folding)
    run = load_run(run_of("finetune-all", dataset, bases, tmp_path / "run"), dataset)
    assert any(name.endswith("scale") for name in load_model(tmp_path / "run")[0])
    merge(run, tmp_path / "merged")
    merged = load_run(tmp_path / "merged", dataset)
    assert not any(name.endswith("scale") for name in merged.strategy.state_dict())
    assert largest_difference(run.strategy, merged.strategy, 6) < TOLERANCE


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (Forgetting, "what 'finetune-all' merged into computes something else: scores of random users differ by"),
        (Unfolded, "'finetune-all' failed to merge: RuntimeError: "),
        (Failing, "'finetune-all' failed to merge: ZeroDivisionError: a third party's; ftkit --traceback"),
    ],
)
def test_what_does_not_merge_into_the_same_is_refused_and_nothing_is_written(
    strategy, said, dataset, bases, tmp_path, monkeypatch
):
    monkeypatch.setattr("ftkit_baselines.finetune.FinetuneAll", strategy)
    run = load_run(run_of("finetune-all", dataset, bases, tmp_path / "run"), dataset)
    with pytest.raises(PluginError, match=said) as caught:
        merge(run, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_says_so(dataset, bases, tmp_path):
    run = load_run(run_of("uaf-hard", dataset, bases, tmp_path / "run"), dataset)
    with pytest.raises(PluginError, match="UafHard can't be merged into a plain NextItNet"):
        merge(run, tmp_path / "merged")


def test_a_merged_run_is_a_base_that_says_where_it_comes_from(dataset, bases, tmp_path):
    run = load_run(run_of("finetune-all", dataset, bases, tmp_path / "run"), dataset)
    told = merge(run, tmp_path / "merged")
    tensors, facts = load_model(tmp_path / "merged")
    assert (facts["kind"], facts["base"], facts["hash"]) == ("pretrained", None, told["hash"])
    assert facts["about"]["merged_from"]["hash"] == run.facts["hash"]
    assert facts["about"]["merged_from"]["base"]["hash"] == run.facts["base"]["hash"]
    assert {name for name in tensors if not name.startswith("backbone.")} == {"task.head.weight", "task.head.bias"}
    config = configured("peterrec")
    weights = load_base(tmp_path / "merged", config, dataset)
    assert torch.equal(weights["item_embedding.weight"], run.strategy.backbone.item_embedding.weight)
    metrics = Runner(config, dataset, make_fabric("cpu")).finetune(tmp_path / "next", tmp_path / "merged")
    spent = json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"]
    assert metrics["seconds"]["pretrain"] == spent["pretrain"] + spent["finetune"]
    assert load_run(tmp_path / "next", dataset).facts["base"]["hash"] == told["hash"]


@pytest.mark.parametrize(("name", "text"), [("split.parquet", None), ("split.parquet", "no"), ("metrics.json", "{")])
def test_a_run_that_is_not_whole_is_not_merged(dataset, bases, tmp_path, name, text):
    run = load_run(run_of("finetune-all", dataset, bases, tmp_path / "run"), dataset)
    (tmp_path / "run" / name).unlink()
    if text is not None:
        (tmp_path / "run" / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        merge(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_that_are_no_numbers_are_refused(dataset, bases, tmp_path):
    run = load_run(run_of("finetune-all", dataset, bases, tmp_path / "run"), dataset)
    with torch.no_grad():
        run.strategy.task.head.bias.fill_(torch.nan)
    with pytest.raises(PluginError, match="differ by inf"):
        merge(run, tmp_path / "merged")


def test_a_run_of_a_later_version_names_the_option_that_is_not_known(dataset, bases, tmp_path):
    config = run_of("finetune-cls", dataset, bases, tmp_path / "run") / "config.toml"
    text = config.read_text()
    later = text.replace("[finetune]\n", "[finetune]\nwarmup = 3\n").replace(
        'finetune-kit = "0.1.0"', 'finetune-kit = "3.1.0"'
    )
    config.write_text(later)
    with pytest.raises(
        CheckpointError, match=r"no option finetune\.warmup\..*; it was written by ftkit 3\.1\.0"
    ) as told:
        load_run(tmp_path / "run", dataset)
    assert "config.toml" in str(told.value)
    config.write_text(text.replace("[strategy]", ""))
    with pytest.raises(CheckpointError, match=r"config\.toml is damaged: it lacks \[strategy\]; copy or make"):
        load_run(tmp_path / "run", dataset)
    config.write_text(text.replace("[files]", "[fils]"))
    with pytest.raises(CheckpointError, match=r"lacks files\.dataset, files\.dataset_fingerprint"):
        load_run(tmp_path / "run", dataset)


def test_a_base_that_is_not_there_is_asked_for(dataset, tmp_path):
    (tmp_path / "bases").mkdir()
    run_of("finetune-cls", dataset, tmp_path / "bases", tmp_path / "run")
    (tmp_path / "bases").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"is no longer at .*; say with --base where it is"):
        load_run(tmp_path / "run", dataset)
    base = next((tmp_path / "away").iterdir())
    assert load_run(tmp_path / "run", dataset, base=base).facts["strategy"] == "finetune-cls"


def test_a_strategy_saves_what_it_trained_and_no_more(dataset, bases, tmp_path):
    run = load_run(run_of("finetune-last1", dataset, bases, tmp_path / "run"), dataset)
    saved = load_model(tmp_path / "run")[0]
    assert {name.split(".conv")[0].split(".norm")[0] for name in saved} == {
        "backbone.blocks.1",
        "task.head.weight",
        "task.head.bias",
    }
    assert saved.keys() < run.strategy.state_dict().keys()

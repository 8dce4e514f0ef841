import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune_kit import Component, Options, WrappedBackbone, hookimpl, plugins
from finetune_kit.checkpoint import load_model
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import CheckpointError, DataError
from finetune_kit.plugins import GROUP
from finetune_kit.testing import TinyBackbone, randomise
from finetune_kit.training.pretrained import save_pretrained
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


class Averages(nn.Module):
    """Someone's model: each block adds a map of the mean of the items so far."""

    class Block(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.linear = nn.Linear(dim, dim)

        def forward(self, hidden, mask):
            mean = (hidden * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
            return hidden + self.linear(mean).relu()

    def __init__(self, num_items: int, dim: int, scale: float) -> None:
        super().__init__()
        self.items, self.scale = nn.Embedding(num_items + 1, dim, padding_idx=0), scale
        self.blocks = nn.ModuleList(self.Block(dim) for _ in range(2))

    def forward(self, ids):
        hidden, mask = self.items(ids) * self.scale, (ids != 0).unsqueeze(-1).float()
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden


class AveragesOptions(Options):
    dim: int = 8
    """Width."""


class WrappedAverages(WrappedBackbone):
    Options = AveragesOptions
    options: AveragesOptions

    def __init__(self, num_items: int, max_length: int, options: AveragesOptions | None = None, scale: float = 1.0):
        options = options or AveragesOptions()
        module = Averages(num_items, options.dim, scale)
        super().__init__(module, embedding="items", blocks="blocks", max_length=max_length, options=options)


@hookimpl
def ftkit_backbones() -> list[Component]:
    return [Component("averages", "For tests", f"{__name__}:WrappedAverages")]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    entry = EntryPoint("averages", __name__, GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), entry])
    plugins.installed.cache_clear()
    yield
    plugins.installed.cache_clear()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "made-up"
    Synthetic(SyntheticOptions(users=60, max_length=12)).prepare(folder)
    return Dataset.open(folder)


def make(dataset: Dataset, **how: object) -> WrappedAverages:
    how = {"num_items": dataset.num_source_items, "max_length": 10, "options": AveragesOptions(dim=6), **how}
    return randomise(WrappedAverages(**how), seed=5)


@pytest.mark.parametrize("strategy", ["uaf-hard", "finetune-last1", "mtl"])
def test_a_backbone_from_elsewhere_is_fine_tuned_by_command(strategy, dataset, ftkit, tmp_path):
    folder = save_pretrained(make(dataset), "averages", dataset, tmp_path / "base", seed=3)
    arguments = ["--from", str(folder), "--strategy", strategy, "--epochs", "1", "--output", "out", "--json"]
    done = ftkit("finetune", *arguments)
    assert done.code == 0, done.err
    assert (done.json["backbone"], done.json["seed"], done.json["seconds"]["pretrain"]) == ("averages", 3, 0.0)
    assert json.loads(ftkit("evaluate", "out", "--json").out)["test"] == done.json["test"]


def test_the_run_starts_from_its_weights(dataset, ftkit, tmp_path):
    backbone = make(dataset)
    folder = save_pretrained(backbone, "averages", dataset, tmp_path / "base")
    done = ftkit("finetune", "--from", str(folder), "--strategy", "finetune-cls", "--epochs", "1", "--output", "out")
    assert done.code == 0, done.err
    tensors, facts = load_model(folder)
    assert facts["kind"] == "pretrained"
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensors[f"backbone.{name}"], tensor)
    assert json.loads(Path("out/model.json").read_text())["base"]["hash"] == facts["hash"]


def test_any_backbone_may_come_from_elsewhere(dataset, tmp_path):
    from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions

    backbone = NextItNet(dataset.num_source_items, 10, NextItNetOptions(dim=6, num_blocks=1, dilations=(2,)))
    assert (save_pretrained(backbone.train(), "nextitnet", dataset, tmp_path / "base") / "metrics.json").exists()
    assert backbone.training


def test_a_folder_that_is_taken_is_refused(dataset, tmp_path):
    save_pretrained(make(dataset), "averages", dataset, tmp_path / "base")
    with pytest.raises(CheckpointError, match="holds a model already; name another folder"):
        save_pretrained(make(dataset), "averages", dataset, tmp_path / "base")


def test_another_number_of_items_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match=r"the backbone knows 7 items, .* has \d+ source items"):
        save_pretrained(make(dataset, num_items=7), "averages", dataset, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_another_backbone_than_the_name_s_is_refused(dataset, tmp_path):
    other = TinyBackbone(dataset.num_source_items, 10)
    with pytest.raises(ValueError, match=r"no option backbone\.num_blocks"):
        save_pretrained(other, "averages", dataset, tmp_path / "base")
    other.options = AveragesOptions()
    with pytest.raises(CheckpointError, match=r"'averages' has other weights than the one given: .* names differ"):
        save_pretrained(other, "averages", dataset, tmp_path / "base")


def test_options_that_do_not_tell_the_sizes_are_refused(dataset, tmp_path):
    backbone = make(dataset)
    backbone.options = AveragesOptions(dim=7)
    with pytest.raises(CheckpointError, match=r"is \(\d+, 6\) in the backbone given and \(\d+, 7\) in 'averages'"):
        save_pretrained(backbone, "averages", dataset, tmp_path / "base")


def test_what_no_option_tells_is_noticed(dataset, tmp_path):
    with pytest.raises(CheckpointError, match="'averages' computes something else from the same weights, by up to"):
        save_pretrained(make(dataset, scale=2.0), "averages", dataset, tmp_path / "base")

"""Fuzzed folders: a dataset, a pre-trained backbone and a run, made once and then spoiled file by file."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from mutations import ANY, TEXT
from readers import Reader, look_into

from finetune_kit.cli.result import print_result
from finetune_kit.config import read_run, resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.earlier import Earlier
from finetune_kit.files import read_metrics
from finetune_kit.progress import Progress
from finetune_kit.training.assemble import load_run
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


def folder_readers(folder: Path) -> list[Reader]:
    """Make the folders below another; return how they are read once a file in them is spoiled."""
    made = folder / "whole"
    dataset = made / "toy"
    if not (made / "run").exists():
        _make(made, dataset)
    texts = ["dataset.json", "source.flat.json"]
    tables = sorted(path.name for path in dataset.iterdir() if path.name not in texts)
    return [
        Reader("dataset manifest", _copy(dataset, texts), lambda place, _: _read_dataset(place / "toy"), TEXT, 3),
        Reader("dataset tables", _copy(dataset, tables), lambda place, _: _read_dataset(place / "toy"), ANY, 3),
        Reader(
            "run texts", _copy(made / "run", ["model.json", "metrics.json", "config.toml"]), _read_run(made), TEXT, 4
        ),
        Reader("run tables", _copy(made / "run", ["model.safetensors", "split.parquet"]), _read_run(made), ANY, 2),
    ]


def _make(made: Path, dataset: Path) -> None:
    Synthetic(SyntheticOptions(users=30, max_length=10)).prepare(dataset)
    config = {
        "run": {"strategy": "finetune-last1", "data": str(dataset)},
        "data": {"max_length": 6},
        "backbone": {"dim": 4, "num_blocks": 1},
        "pretrain": {"epochs": 1},
        "finetune": {"epochs": 1},
    }
    runner = Runner(resolve_config(config), Dataset.open(dataset), make_fabric("cpu"), Progress())
    runner.finetune(made / "run", runner.pretrain(made / "bases"))
    shutil.rmtree(made / "run" / "last", ignore_errors=True)


def _copy(whole: Path, names: list[str]) -> Callable[[Path, Random], list[Path]]:
    def write(folder: Path, random: Random) -> list[Path]:
        shutil.copytree(whole, folder / whole.name)
        return [folder / whole.name / name for name in names]

    return write


def _read_dataset(folder: Path) -> None:
    look_into(folder)


def _read_run(made: Path) -> Callable[[Path, Random], None]:
    """Return what reads a run as evaluate, recommend, merge and finetune --from do."""

    def read(place: Path, random: Random) -> None:
        folder = place / "run"
        base = next((made / "bases").iterdir())
        load_run(folder, Dataset.open(made / "toy"), base)
        read_run(folder)
        read_metrics(folder)
        Earlier.read(folder, "split.parquet")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            print_result(folder, as_json=False)

    return read

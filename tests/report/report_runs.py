"""Finished runs that nobody trained, for pictures and reports."""

import copy
from pathlib import Path

import numpy as np

from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.data.dataset import Dataset
from finetune_kit.files import write_table, write_text
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions

PLAIN, GATED = Setting("plain"), Setting("gated")


def synthetic(folder: Path) -> Dataset:
    Synthetic(SyntheticOptions(users=60, max_length=8)).prepare(folder)
    return Dataset.open(folder)


def made_up(
    folder: Path,
    dataset: Dataset,
    settings: tuple[Setting, ...] = (PLAIN, GATED),
    seeds: tuple[int, ...] = (0, 1),
    blocks: int = 3,
    task: str = "items",
    files: bool = True,
    **more,
) -> Results:
    """Return results whose rows get better in their order; rows called ``gated…`` have a policy.

    Runs keep their tables in memory; what is read from files (the split, the configuration) is written if ``files``.
    """
    runs = []
    for place, setting in enumerate(settings):
        for seed in seeds:
            random = np.random.default_rng(1000 * place + seed)
            instances = label_instances(dataset, random) if task != "items" else item_instances(dataset, random, place)
            path = folder / f"{place}-s{seed}"
            run = Result(setting, seed, path, metrics_of(instances, place + seed))
            vars(run)["instances"] = instances
            vars(run)["history"] = history_of(random, task, epochs=4 + seed)
            vars(run)["policy"] = policy_of(dataset, random, blocks) if setting.strategy.startswith("gated") else None
            if files:
                write_files(path, dataset)
            runs.append(run)
    return Results("made-up", task, tuple(runs), **more)


def item_instances(dataset: Dataset, random, better: int) -> dict[str, np.ndarray]:
    rank = np.maximum(1, random.integers(1, 30, len(dataset.target.user)) - 2 * better).astype(float)
    return {"user": dataset.target.user, "item": dataset.target.item, "rank_full": rank}


def label_instances(dataset: Dataset, random) -> dict[str, np.ndarray]:
    actual = dataset.labels["kind"].value
    predicted = np.where(random.random(len(actual)) < 0.6, actual, 0)
    return {"user": np.arange(1, len(actual) + 1), "class": actual, "predicted": predicted}


def metrics_of(instances, place: int) -> dict:
    if "class" in instances:
        accuracy = float((instances["class"] == instances["predicted"]).mean())
        test = {"accuracy": accuracy, "f1_macro": accuracy / 2}
        references = {"majority": {"accuracy": 0.5, "f1_macro": 0.2}}
    else:
        hit = instances["rank_full"] <= 5
        test = {"full": {"mrr@5": float((hit / instances["rank_full"]).mean()), "hr@5": float(hit.mean())}}
        references = {"popularity": {"full": {"mrr@5": 0.05, "hr@5": 0.1}}}
    return {
        "valid": copy.deepcopy(test),
        "test": test,
        "references": references,
        "instances": {"train": 80, "valid": 5, "test": 15},
        "best_epoch": 3,
        "epochs": 4,
        "trainable_parameters": 100 * (place + 1),
        "total_parameters": 1000,
        "seconds": {"pretrain": 1.0, "finetune": 2.0, "evaluate": 0.1},
        "instances_per_second": 10.0,
    }


def history_of(random, task: str, epochs: int) -> dict[str, np.ndarray]:
    names = ("mrr@5", "hr@5") if task == "items" else ("accuracy", "f1_macro")
    curves = {name: random.random(epochs) for name in names}
    return {
        "epoch": np.arange(1, epochs + 1),
        "train_loss": random.random(epochs),
        **curves,
        "seconds": np.ones(epochs),
    }


def policy_of(dataset: Dataset, random, blocks: int) -> dict[str, np.ndarray]:
    gates = random.integers(0, 2, (dataset.num_users, blocks)).astype(np.float32)
    return {"user": np.arange(1, dataset.num_users + 1), **{f"gate_{k}": gates[:, k] for k in range(blocks)}}


def give_gates(results: Results, setting: Setting, gates: np.ndarray) -> None:
    """Let all runs of a row have these gates ``(users, blocks)``."""
    for run in results.of(setting):
        columns = {f"gate_{k}": gates[:, k] for k in range(gates.shape[1])}
        vars(run)["policy"] = {"user": np.arange(1, len(gates) + 1), **columns}


def write_files(path: Path, dataset: Dataset) -> None:
    part = np.where(dataset.target.position == 0, "train", "test").astype(object)
    write_table(path / "split.parquet", {"user": dataset.target.user, "item": dataset.target.item, "part": part})
    files = f'[files]\ndataset = "{dataset.path}"\ndataset_fingerprint = "{dataset.fingerprint}"\n'
    write_text(path / "config.toml", files)

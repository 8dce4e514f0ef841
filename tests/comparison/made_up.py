"""Finished runs that nobody trained: folders with the files that comparisons read."""

import json
from pathlib import Path

import numpy as np

from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.files import write_table

SECONDS = {"pretrain": 10.0, "finetune": 2.0, "evaluate": 1.0}


def ranking_metrics(rank) -> dict[str, float]:
    hit = rank <= 5
    return {"mrr@5": float((hit / rank).mean()), "hr@5": float(hit.mean())}


def made_up_run(
    folder: Path, setting: Setting, seed: int, rank, *, valid: float = 0.1, references=None, **metrics
) -> Result:
    """Write a run whose test instances have these ranks under both protocols."""
    rank = np.asarray(rank, dtype=np.float64)
    user = np.arange(len(rank)) // 2 + 1  # two instances each
    path = folder / f"{'-'.join(map(str, setting)).replace('/', '_')}-s{seed}"
    write_table(
        path / "instances.parquet",
        {"user": user, "item": np.arange(len(rank)) + 1, "rank_full": rank, "rank_sampled": rank},
    )
    test = {protocol: ranking_metrics(rank) for protocol in ("full", "sampled")}
    content = {
        "valid": {protocol: {"mrr@5": valid, "hr@5": valid} for protocol in test},
        "test": test,
        "references": {name: dict.fromkeys(test, values) for name, values in (references or {}).items()},
        **common(metrics),
    }
    (path / "metrics.json").write_text(json.dumps(content))
    return Result.read(setting, seed, path)


def made_up_label_run(folder: Path, setting: Setting, seed: int, actual, predicted, f1: float) -> Result:
    """Write a run that predicted these classes."""
    path = folder / f"{setting.strategy}-s{seed}"
    actual, predicted = np.asarray(actual), np.asarray(predicted)
    user = np.arange(len(actual)) + 1
    write_table(path / "instances.parquet", {"user": user, "class": actual, "predicted": predicted})
    test = {"accuracy": float((actual == predicted).mean()), "f1_macro": f1}
    references = {"majority": {"accuracy": 0.5, "f1_macro": 0.3}}
    content = {"valid": test, "test": test, "references": references, **common({})}
    (path / "metrics.json").write_text(json.dumps(content))
    return Result.read(setting, seed, path)


def common(metrics) -> dict:
    return {
        "best_epoch": 3,
        "epochs": 5,
        "trainable_parameters": 1_000,
        "total_parameters": 4_000,
        "seconds": SECONDS,
        "instances_per_second": 1234.0,
        **metrics,
    }


def made_up_results(folder: Path, ranks: dict[str, list[list[float]]], **more) -> Results:
    """Return results of strategies with the ranks of each seed."""
    runs = [
        made_up_run(folder, Setting(strategy), seed, rank, **more)
        for strategy, seeds in ranks.items()
        for seed, rank in enumerate(seeds)
    ]
    return Results("made-up", "items", tuple(runs), ("tuning budget: none",))

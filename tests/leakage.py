"""Do answers leak? A run is made again with other answers where it must not look, and compared bit for bit.

`trace` makes a run and returns all of it that answers of the test part have no business in. Test instances keep their
users and places; only what is asked of them is another item, or another class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.evaluation.references import REFERENCES
from finetune_kit.files import read_table
from finetune_kit.training.run import Runner


def with_other_answers(dataset: Dataset, instances: np.ndarray) -> Dataset:
    """Return the dataset with another item (or class) for each of some target instances, one that the user has not."""
    other, user, item = replace(dataset), dataset.target.user, dataset.target.item.copy()
    taken = {*zip(user.tolist(), item.tolist(), strict=True)}
    for instance in instances:
        while (pair := (int(user[instance]), int(item[instance]))) in taken:
            item[instance] = item[instance] % dataset.num_target_items + 1
        taken.add(pair)
    other.__dict__["target"] = dataset.target._replace(item=item)  # as if the folder said so
    return other


def trace(made: Runner, root: Path) -> dict[str, Any]:
    """Return, of a run, what may not depend on the answers of test instances."""
    scored: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, make in REFERENCES.items():
            patch.setitem(REFERENCES, name, _noting(scored, name, make))
        base = made.pretrain(root / "bases") if made.build_strategy(None).needs_pretrained else None
        metrics = made.finetune(root / "run", base)
    history = read_table(root / "run" / "history.parquet")
    gates = root / "run" / "policy.parquet"
    return {
        "base": None if base is None else (base / "model.safetensors").read_bytes(),
        "losses": history["train_loss"].tolist(),
        "history": {name: column.tolist() for name, column in history.items() if name != "seconds"},
        "best_epoch": metrics["best_epoch"],
        "weights": (root / "run" / "model.safetensors").read_bytes(),
        "policy": {name: column.tolist() for name, column in read_table(gates).items()} if gates.exists() else None,
        "valid": metrics["valid"],
        "control": metrics.get("control", {}).get("gates"),
        "known items": known_items(made),
        "references": scored,
    }


def known_items(made: Runner) -> list[int]:
    """Return the items that full ranking leaves out, user by user; few of them move a rank, and metrics hide them."""
    evaluator = made.evaluator(made.split.valid)
    return evaluator._known_item.tolist() if isinstance(evaluator, Evaluator) else []


def _noting(scored: dict[str, Any], name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a maker of a reference that notes what it scores."""

    def made(dataset: Dataset, train: np.ndarray) -> Any:
        scorer = make(dataset, train)
        scored[name] = scorer(np.arange(1, dataset.num_users + 1)).tolist()
        return scorer

    return made


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the parts in which two traces differ."""
    return [name for name in one if one[name] != other[name]]


def leaks(make: Callable[[Dataset], Runner], dataset: Dataset, root: Path) -> list[str]:
    """Return where answers get that may not: of the test part anywhere, of all that does not train into training.

    Args:
        make: Returns what carries out the run on a dataset.
        dataset: As the task sees it.
        root: An empty folder.
    """
    parts = make(dataset).split
    plain = trace(make(dataset), root / "plain")
    found = differing(plain, trace(make(with_other_answers(dataset, parts.test)), root / "test"))
    untrained = np.setdiff1d(np.arange(len(dataset.target.user)), parts.train)
    other = trace(make(with_other_answers(dataset, untrained)), root / "untrained")
    training = ("base", "losses", "references")
    return found + [f"{name}, of what does not train" for name in differing(plain, other) if name in training]

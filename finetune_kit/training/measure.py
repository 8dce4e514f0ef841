"""Measure a trained strategy: validation and test, the simple rankings beside it, and what its policy does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_kit.evaluation.evaluate import Evaluation
from finetune_kit.evaluation.references import REFERENCES
from finetune_kit.files import write_table

if TYPE_CHECKING:
    from finetune_kit.strategy import Strategy
    from finetune_kit.training.experiment import Experiment


@dataclass(frozen=True)
class Measured:
    """The numbers of a trained strategy.

    Args:
        metrics: ``valid`` and ``test`` by ranking protocol, ``references`` on the test part, ``instances`` per part,
            and for strategies with gates ``gates``.
        tables: Name to columns, for the Parquet files of the run folder.
    """

    metrics: dict[str, Any]
    tables: dict[str, dict[str, np.ndarray]]

    def write(self, folder: Path) -> None:
        """Write the tables into a run folder."""
        for name, columns in self.tables.items():
            write_table(folder / f"{name}.parquet", columns)


def measure(experiment: Experiment, strategy: Strategy) -> Measured:
    """Return the strategy's numbers on the parts of the experiment's split."""
    options, parts, target = experiment.config.evaluation, experiment.split, experiment.dataset.target
    on_test, references, policy = experiment.evaluator(parts.test), {}, None
    with experiment.progress.stage("evaluate", 2 + len(options.references)) as advance:
        test = on_test.evaluate(strategy, experiment.fabric)
        advance(1, "test")
        valid = on_test.of(parts.valid).evaluate(strategy, experiment.fabric)
        if test.gates is not None:
            policy = on_test.of(_first_instances(target.user)).evaluate(strategy, experiment.fabric, ())
        advance(1, "validation")
        for name in options.references:
            scorer = REFERENCES[name](experiment.dataset, parts.train)
            references[name] = on_test.evaluate_scorer(scorer).metrics(options.cutoffs)
            advance(1, name)
    metrics: dict[str, Any] = {
        "valid": valid.metrics(options.cutoffs),
        "test": test.metrics(options.cutoffs),
        "references": references,
        "instances": {name: len(getattr(parts, name)) for name in ("train", "valid", "test")},
    }
    ranks = {f"rank_{protocol}": values for protocol, values in test.ranks.items()}
    instances = {"user": target.user[test.instance], "item": target.item[test.instance], **ranks}
    tables = {"instances": instances, "split": _split_table(experiment)}
    if policy is not None:
        metrics["gates"] = gate_summary(policy)
        tables["policy"] = _policy_table(policy)
    return Measured(metrics, tables)


def gate_summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return per block the mean gate and the mean probability of the fine-tuned branch, and how alike users are.

    ``distinct`` counts the different gate vectors among users (rounded to 0.01): 1 means that the policy treats
    everybody alike.
    """
    assert evaluation.gates is not None
    summary: dict[str, Any] = {"mean": [round(float(mean), 4) for mean in evaluation.gates.mean(axis=0)]}
    if evaluation.probabilities is not None:
        summary["probability"] = [round(float(mean), 4) for mean in evaluation.probabilities.mean(axis=0)]
    summary["distinct"] = len(np.unique(evaluation.gates.round(2), axis=0))
    summary["users"] = len(evaluation.user)
    return summary


def _first_instances(user: np.ndarray) -> np.ndarray:
    """Return one instance per user, so that each user is encoded once."""
    return np.unique(user, return_index=True)[1]


def _policy_table(evaluation: Evaluation) -> dict[str, np.ndarray]:
    columns = {"user": evaluation.user}
    for name, values in (("gate", evaluation.gates), ("probability", evaluation.probabilities)):
        if values is not None:
            columns |= {f"{name}_{k}": np.ascontiguousarray(values[:, k]) for k in range(values.shape[1])}
    return columns


def _split_table(experiment: Experiment) -> dict[str, np.ndarray]:
    """Return user, item and part of every instance that was used."""
    parts, target = experiment.split, experiment.dataset.target
    instance = np.concatenate([parts.train, parts.valid, parts.test])
    names = np.array(["train", "valid", "test"], dtype=object)
    part = np.repeat(names, [len(parts.train), len(parts.valid), len(parts.test)])
    return {"user": target.user[instance], "item": target.item[instance], "part": part}

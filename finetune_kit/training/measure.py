"""Measure a trained strategy: validation and test, the simple rankings beside it, and what its policy does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_kit.data.earlier import PARTS
from finetune_kit.evaluation.candidates import Candidates
from finetune_kit.evaluation.evaluate import Evaluation, Evaluator
from finetune_kit.evaluation.labels import LabelEvaluation, LabelEvaluator, class_balance, majority
from finetune_kit.evaluation.references import REFERENCES
from finetune_kit.files import write_table
from finetune_kit.training.control import SingleChoice, best_single_choice

if TYPE_CHECKING:
    from finetune_kit.strategy import Strategy
    from finetune_kit.training.experiment import Experiment

COLLAPSED_SHARE = 0.95
COLLAPSED_DEVIATION = 0.02

MEASURED = ("valid", "test", "references", "instances", "classes", "gates", "control", "candidates")
"""Keys of ``metrics.json`` that `measure` gives, as far as they apply."""


@dataclass(frozen=True)
class Measured:
    """The numbers of a trained strategy.

    Args:
        metrics: ``valid`` and ``test`` (for items by ranking protocol), ``references`` on the test part, ``instances``
            per part, for profile labels ``classes``, and for strategies with gates ``gates`` and ``control`` (the best
            single choice of blocks for all users at equal usage, or the ``reason`` why it was not measured), and with
            sampled ranking ``candidates``, how many of an instance and the hash of all.
        tables: Name to columns, for the Parquet files of the run folder.
        control_seconds: How long the control took.
        candidates: What the sampled protocol ranked validation and test instances among, where it did.
    """

    metrics: dict[str, Any]
    tables: dict[str, dict[str, np.ndarray]]
    control_seconds: float = 0.0
    candidates: Candidates | None = None

    def write(self, folder: Path) -> None:
        """Write tables and candidates into a run folder."""
        if self.candidates is not None:
            self.candidates.write(folder)
        for name, columns in self.tables.items():
            write_table(folder / f"{name}.parquet", columns)


def measure(experiment: Experiment, strategy: Strategy) -> Measured:
    """Return the strategy's numbers on the parts of the experiment's split."""
    parts = experiment.split
    evaluator = experiment.evaluator(parts.test)
    with experiment.progress.stage("evaluate", 2 + len(experiment.config.evaluation.references)) as advance:
        if isinstance(evaluator, LabelEvaluator):
            metrics, instances, policy = _measure_label(experiment, strategy, evaluator, advance)
        else:
            metrics, instances, policy = _measure_items(experiment, strategy, evaluator, advance)
    metrics["instances"] = {name: len(getattr(parts, name)) for name in PARTS}
    tables, control_seconds = {"instances": instances, "split": _split_table(experiment)}, 0.0
    if policy is not None and policy.gates is not None:
        metrics["gates"] = gate_summary(policy)
        tables["policy"] = _policy_table(policy)
        started = time.perf_counter()
        metrics["control"], columns = _measure_control(experiment, strategy, policy)
        control_seconds = time.perf_counter() - started
        instances.update({f"control_{name}": column for name, column in columns.items()})
    candidates = _candidates(experiment)
    if candidates is not None:
        metrics["candidates"] = {"per_instance": candidates.drawn.shape[1], "sha256": candidates.sha256}
    return Measured(metrics, tables, control_seconds, candidates)


def _candidates(experiment: Experiment) -> Candidates | None:
    """Return what sampled ranking ranked validation and test instances among, or None."""
    parts, protocols = experiment.split, experiment.config.evaluation.protocols
    evaluator = experiment.evaluator(np.union1d(parts.valid, parts.test))
    return evaluator.candidates if isinstance(evaluator, Evaluator) and "sampled" in protocols else None


def _measure_control(
    experiment: Experiment, strategy: Strategy, policy: Evaluation | LabelEvaluation
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return gates and test metrics of the best single choice, or why there are none, and its per-instance columns."""
    assert policy.gates is not None
    try:
        single = best_single_choice(experiment, strategy, policy.gates, policy.skipped)
        values, columns = _measure_single(experiment, single)
    except Exception as error:  # a third party's strategy may do anything; the control must not cost the run
        experiment.progress.say(f"warning: no single choice of blocks was measured beside the policy: {error}")
        return {"reason": str(error)}, {}
    skipped = {} if single.skipped is None else {"skipped": list(single.skipped)}
    return {"gates": list(single.gates), **skipped, "test": values}, columns


def _measure_single(experiment: Experiment, single: SingleChoice) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    evaluator = experiment.evaluator(experiment.split.test)
    if isinstance(evaluator, LabelEvaluator):
        predicted = evaluator.evaluate(single, experiment.fabric)
        return predicted.metrics(), {"predicted": predicted.predicted}
    test = evaluator.evaluate(single, experiment.fabric)
    return test.metrics(experiment.config.evaluation.cutoffs), _rank_columns(test)


def _measure_items(
    experiment: Experiment, strategy: Strategy, evaluator: Evaluator, advance: Callable[[int, str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray], Evaluation | None]:
    """Return metrics, per-instance columns, and what the policy does with every user that has an instance."""
    options, parts, target, references = experiment.config.evaluation, experiment.split, experiment.dataset.target, {}
    test = evaluator.evaluate(strategy, experiment.fabric)
    advance(1, "test")
    valid = evaluator.of(parts.valid).evaluate(strategy, experiment.fabric)
    policy = None
    if test.gates is not None:
        policy = evaluator.of(_first_instances(target.user)).evaluate(strategy, experiment.fabric, ())
    advance(1, "validation")
    for name in options.references:
        scorer = REFERENCES[name](experiment.dataset, parts.train)
        references[name] = evaluator.evaluate_scorer(scorer).metrics(options.cutoffs)
        advance(1, name)
    metrics = {
        "valid": valid.metrics(options.cutoffs),
        "test": test.metrics(options.cutoffs),
        "references": references,
    }
    instances = {"user": target.user[test.instance], "item": target.item[test.instance], **_rank_columns(test)}
    return metrics, instances, policy


def _rank_columns(evaluation: Evaluation) -> dict[str, np.ndarray]:
    return {f"rank_{protocol}": ranks for protocol, ranks in evaluation.ranks.items()}


def _measure_label(
    experiment: Experiment, strategy: Strategy, evaluator: LabelEvaluator, advance: Callable[[int, str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray], LabelEvaluation | None]:
    """Return metrics, per-instance columns, and what the policy does with every user whose label is known."""
    parts, dataset = experiment.split, evaluator.dataset
    everybody = evaluator.of(np.arange(len(dataset.target.user))).evaluate(strategy, experiment.fabric)
    advance(2, "test and validation")
    test, valid = everybody.of(parts.test), everybody.of(parts.valid)
    metrics = {
        "valid": valid.metrics(),
        "test": test.metrics(),
        "references": {"majority": majority(dataset, parts.train, parts.test)},
        "classes": class_balance(dataset, parts.train, parts.test),
    }
    return metrics, test.columns(), None if everybody.gates is None else everybody


def gate_summary(evaluation: Evaluation | LabelEvaluation) -> dict[str, Any]:
    """Return per block the mean gate and the mean probability of the fine-tuned branch, and how alike users are.

    ``deviation`` is the gates' standard deviation over users, per block. ``distinct`` counts the different gate
    vectors among users (rounded to 0.01) and ``commonest`` is the share of users with the most frequent one. A policy
    ``is_collapsed`` when at least `COLLAPSED_SHARE` of the users have it, or no block's deviation reaches
    `COLLAPSED_DEVIATION`: it then decides nothing per user. Where blocks are skipped, ``skipped`` is the mean share per
    block, and whether a user skips a block counts as a part of their choice.
    """
    assert evaluation.gates is not None
    summary: dict[str, Any] = {"mean": [round(float(mean), 4) for mean in evaluation.gates.mean(axis=0)]}
    if evaluation.probabilities is not None:
        summary["probability"] = [round(float(mean), 4) for mean in evaluation.probabilities.mean(axis=0)]
    choice = evaluation.gates
    if evaluation.skipped is not None:
        summary["skipped"] = [round(float(mean), 4) for mean in evaluation.skipped.mean(axis=0)]
        choice = np.concatenate([choice, evaluation.skipped], axis=1)
    deviation = choice.std(axis=0)
    _, counts = np.unique(choice.round(2), axis=0, return_counts=True)
    commonest = float(counts.max() / counts.sum())
    return {
        **summary,
        "deviation": [round(float(value), 4) for value in deviation[: evaluation.gates.shape[1]]],
        "distinct": len(counts),
        "commonest": commonest,
        "is_collapsed": bool(commonest >= COLLAPSED_SHARE or deviation.max() < COLLAPSED_DEVIATION),
        "users": len(evaluation.user),
    }


def _first_instances(user: np.ndarray) -> np.ndarray:
    """Return one instance per user, so that each user is encoded once."""
    return np.unique(user, return_index=True)[1]


def _policy_table(evaluation: Evaluation | LabelEvaluation) -> dict[str, np.ndarray]:
    columns = {"user": evaluation.user}
    told = {"gate": evaluation.gates, "probability": evaluation.probabilities, "skipped": evaluation.skipped}
    for name, values in told.items():
        if values is not None:
            columns |= {f"{name}_{k}": np.ascontiguousarray(values[:, k]) for k in range(values.shape[1])}
    return columns


def _split_table(experiment: Experiment) -> dict[str, np.ndarray]:
    """Return user, item and part of every instance that was used."""
    parts, target = experiment.split, experiment.dataset.target
    instance = np.concatenate([getattr(parts, name) for name in PARTS])
    names = np.array(PARTS, dtype=object)
    part = np.repeat(names, [len(getattr(parts, name)) for name in PARTS])
    return {"user": target.user[instance], "item": target.item[instance], "part": part}

"""What is measured on is not learned from: runs with other answers where they may not look are the same runs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import runner

from finetune_kit.data.dataset import Dataset, Target
from finetune_kit.data.labelled import for_task
from finetune_kit.data.loading import TargetBatches
from finetune_kit.data.split import num_repeated
from finetune_kit.errors import DataError
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.evaluation.references import REFERENCES
from finetune_kit.plugins import installed
from finetune_kit.training import stages
from finetune_kit.training.experiment import Experiment
from finetune_kit.training.pretrain import hold_out
from finetune_kit.training.run import Runner
from ftkit_uaf.rl import UafRl
from leakage import leaks
from matrix import usual_backbone

SOME = ("finetune-all", "mtl", "uaf-rl")
"""Strategies that look at batches in all the ways there are."""
SHORT = {"uaf-rl": {"curriculum_epochs": 1, "num_candidates": 5}}
SLOW = pytest.mark.slow


def made(dataset: Dataset, strategy: str, **sections: dict[str, Any]) -> Runner:
    options = {
        "run": {"strategy": strategy, "backbone": usual_backbone(strategy)},
        "strategy": SHORT.get(strategy, {}),
        "finetune": {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "patience": 0},
        "evaluation": {"references": ("popularity", "user-knn"), "num_candidates": 20},
    }
    return runner(dataset, strategy, **{**options, **sections})


ALL = [pytest.param(name, marks=() if name == "uaf-rl" else SLOW) for name in installed().components("strategy")]


@pytest.mark.parametrize("strategy", ALL)
def test_no_answer_leaks_into_a_run(strategy: str, dataset: Dataset, tmp_path: Path) -> None:
    assert leaks(partial(made, strategy=strategy), dataset, tmp_path) == []


@SLOW
@pytest.mark.parametrize("strategy", SOME)
@pytest.mark.parametrize(
    "data", [{"split": "user"}, {"fraction": 0.5}, {"split": "user", "fraction": 0.5}, {"unseen": "drop"}], ids=str
)
def test_no_answer_leaks_by_another_split(strategy: str, data: dict[str, Any], dataset: Dataset, tmp_path: Path):
    make = partial(made, strategy=strategy, data={"max_length": 8, **data})
    assert leaks(make, dataset, tmp_path) == []


@SLOW
@pytest.mark.parametrize("strategy", SOME)
def test_no_label_leaks_into_a_run(strategy: str, dataset: Dataset, tmp_path: Path) -> None:
    run = {"strategy": strategy, "backbone": "nextitnet", "task": "label:kind"}
    assert leaks(partial(made, strategy=strategy, run=run), for_task(dataset, "label:kind"), tmp_path) == []


@pytest.mark.parametrize(
    "options", [{"batching": "instances"}, {"loss": "softmax"}, {"optimizer": "lazy-adam"}], ids=str
)
@SLOW
def test_no_answer_leaks_however_it_is_trained(options: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    finetune = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "patience": 0, **options}
    assert leaks(partial(made, strategy="finetune-all", finetune=finetune), dataset, tmp_path) == []


def test_an_instance_that_stands_there_twice_is_refused_as_it_would_be_trained_on_and_tested_on(dataset: Dataset):
    twice, target = replace(dataset), dataset.target
    assert num_repeated(target.user, target.item) == 0
    row = np.sort([*range(len(target.user)), 3, 3, 9])
    twice.__dict__["target"] = Target(*(column[row] for column in target))
    with pytest.raises(DataError, match=r"has 3 target events that repeat a pair of user and item, .*; prepare it"):
        _ = made(twice, "finetune-cls").split


# Leaks that are put in are found


def everything(dataset: Dataset) -> np.ndarray:
    return np.arange(len(dataset.target.user))


def trains_on_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stages, "TargetBatches", lambda dataset, _, *rest: TargetBatches(dataset, everything(dataset), *rest))


def trains_beyond_the_fraction(patch: pytest.MonkeyPatch) -> None:
    carried_out = stages.Finetuning._batches
    patch.setattr(
        stages.Finetuning,
        "_batches",
        lambda self, parts, **given: carried_out(self, replace(parts, train=parts.known), **given),
    )


def stops_by_the_test_part(patch: pytest.MonkeyPatch) -> None:
    validator = Experiment.validator

    def peeking(self: Experiment, strategy: Any) -> Callable[[], dict[str, float]]:
        return validator(replace(self, earlier=TestedOn()), strategy)

    patch.setattr(Experiment, "validator", peeking)


class TestedOn:
    """Parts of which the test part stands for the validation part."""

    __test__ = False

    def keep(self, parts: Any, *_: Any) -> Any:
        return replace(parts, valid=parts.test)


def knows_all(patch: pytest.MonkeyPatch) -> None:
    def evaluator(self: Experiment, instances: np.ndarray) -> Evaluator:
        known, length = everything(self.dataset), self.config.data.max_length
        return Evaluator(self.dataset, instances, known, self.config.evaluation, length, self.config.run.seed)

    patch.setattr(Experiment, "evaluator", evaluator)


def counts_all(name: str, patch: pytest.MonkeyPatch) -> None:
    make = REFERENCES[name]
    patch.setitem(REFERENCES, name, lambda dataset, train: make(dataset, everything(dataset)))


def draws_negatives_that_nobody_has(patch: pytest.MonkeyPatch) -> None:
    epoch = TargetBatches.epoch

    def peeking(self: TargetBatches, generator: torch.Generator) -> Any:
        user, item = self.dataset.target.user, self.dataset.target.item
        for batch in epoch(self, generator):
            of_instance = batch.user[batch.row].numpy()
            has = [
                np.isin(own, item[user == one]) for one, own in zip(of_instance, batch.negative.numpy(), strict=True)
            ]
            shifted = batch.negative % self.dataset.num_target_items + 1
            batch.negative = torch.where(torch.from_numpy(np.array(has)), shifted, batch.negative)
            yield batch

    patch.setattr(TargetBatches, "epoch", peeking)


def pretrains_by_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        stages, "hold_out", lambda dataset, share, seed: hold_out(dataset, share, int(dataset.target.item.sum()))
    )


def rewards_what_was_asked_last(patch: pytest.MonkeyPatch) -> None:
    """Lets the reward know the answers that validation asked for."""
    encode, rewards = UafRl.encode, UafRl._rewards
    asked: list[torch.Tensor] = []

    def remembering(self: UafRl, batch: Any) -> Any:
        if not self.training:
            asked.append(batch.positive)
        return encode(self, batch)

    def knowing(self: UafRl, batch: Any, actions: torch.Tensor, *given: Any) -> torch.Tensor:
        known = float(asked[-1].sum() % 7) if asked else 1.0
        return rewards(self, batch, actions, *given) * known * actions[batch.row].mean(dim=-1)

    patch.setattr(UafRl, "encode", remembering)
    patch.setattr(UafRl, "_rewards", knowing)


@pytest.mark.parametrize(
    ("leak", "found", "strategy", "data"),
    [
        (trains_on_all, "weights", "finetune-all", {}),
        pytest.param(trains_on_all, "losses", "mtl", {}, marks=SLOW),
        pytest.param(trains_on_all, "losses", "uaf-rl", {}, marks=SLOW),
        pytest.param(
            trains_beyond_the_fraction,
            "losses, of what does not train",
            "finetune-all",
            {"fraction": 0.5},
            marks=pytest.mark.slow,
        ),
        pytest.param(stops_by_the_test_part, "history", "finetune-all", {}, marks=SLOW),
        pytest.param(knows_all, "known items", "finetune-all", {}, marks=SLOW),
        pytest.param(partial(counts_all, "popularity"), "references", "finetune-zero", {}, marks=SLOW),
        pytest.param(partial(counts_all, "user-knn"), "references", "finetune-zero", {}, marks=SLOW),
        pytest.param(draws_negatives_that_nobody_has, "losses", "finetune-all", {}, marks=SLOW),
        pytest.param(pretrains_by_answers, "base", "finetune-cls", {}, marks=SLOW),
        pytest.param(
            rewards_what_was_asked_last, "losses, of what does not train", "uaf-rl", {}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_leak_that_is_put_in_is_found(
    leak: Callable[[pytest.MonkeyPatch], None],
    found: str,
    strategy: str,
    data: dict[str, Any],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leak(monkeypatch)
    make = partial(made, strategy=strategy, data={"max_length": 8, **data})
    assert found in leaks(make, dataset, tmp_path)

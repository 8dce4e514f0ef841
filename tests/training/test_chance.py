"""Where answers tell nothing of users, everything is as good as chance, and not better.

Answers are drawn anew, uniformly and each by itself. Whatever was trained on the others, a positive then stands among
its c candidates at any of the c + 1 ranks with the same probability; a class is guessed with probability 1 / classes.
Means over instances must lie within `BOUND` standard deviations: by chance one number in 150,000 does not.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import runner, whole_run

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.data.loading import TargetBatches
from finetune_kit.evaluation.references import REFERENCES
from finetune_kit.files import read_table
from finetune_kit.plugins import installed
from finetune_kit.training import experiment, stages
from finetune_kit.training.run import Runner
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions
from matrix import usual_backbone

BOUND = 4.5
NUM_CANDIDATES = 9
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hr@1": lambda rank: 1.0 * (rank <= 1),
    "hr@5": lambda rank: 1.0 * (rank <= 5),
    "mrr": lambda rank: 1 / rank,
    "rank": lambda rank: 1.0 * rank,
}


@pytest.fixture(scope="module")
def untold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset whose target items and labels tell nothing."""
    folder = tmp_path_factory.mktemp("data") / "untold"
    Synthetic(SyntheticOptions(users=1000, max_length=8)).prepare(folder)
    return Dataset.open(folder)


@pytest.fixture(autouse=True)
def _repetition_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let users have an item twice, which no dataset may: chance is then the same for all items, whoever has them."""
    monkeypatch.setattr(experiment, "num_repeated", lambda *_: 0)


def with_answers_of_chance(dataset: Dataset) -> Dataset:
    other, target = replace(dataset), dataset.target
    drawn = np.random.default_rng(0).integers(1, dataset.num_target_items, len(target.item), endpoint=True)
    other.__dict__["target"] = target._replace(item=drawn)
    return other


def made(dataset: Dataset, strategy: str, task: str = "items") -> Runner:
    return runner(
        with_answers_of_chance(for_task(dataset, task)),
        strategy,
        run={"strategy": strategy, "backbone": usual_backbone(strategy), "task": task},
        data={"max_length": 8, "fraction": 0.5},
        finetune={"epochs": 6, "batch_size": 64, "learning_rate": 0.03, "patience": 0},
        evaluation={"num_candidates": NUM_CANDIDATES},
    )


def deviations(rank: np.ndarray) -> dict[str, float]:
    """Return by how many standard deviations the mean of each gain lies above what chance gives."""
    every = np.arange(1, NUM_CANDIDATES + 2)
    return {
        name: (gain(rank).mean() - gain(every).mean()) / (gain(every).std() / len(rank) ** 0.5)
        for name, gain in GAINS.items()
    }


def is_chance(found: dict[str, float]) -> bool:
    return max(map(abs, found.values())) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_ranks_of_answers_of_chance_are_chance(strategy: str, untold: Dataset, tmp_path: Path) -> None:
    _, folder = whole_run(made(untold, strategy), tmp_path)
    found = deviations(read_table(folder / "instances.parquet")["rank_sampled"])
    assert is_chance(found), found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_classes_of_chance_are_guessed_by_chance(strategy: str, untold: Dataset, tmp_path: Path) -> None:
    metrics, folder = whole_run(made(untold, strategy, "label:kind"), tmp_path)
    share, num = 1 / 3, len(read_table(folder / "instances.parquet")["user"])
    deviation = (metrics["test"]["accuracy"] - share) / (share * (1 - share) / num) ** 0.5
    assert abs(deviation) <= BOUND, deviation


@pytest.mark.parametrize("name", REFERENCES)
def test_simple_rankings_of_answers_of_chance_are_chance_unless_they_count_test_instances(name: str, untold: Dataset):
    runs = made(untold, "finetune-zero")
    dataset, parts = runs.dataset, runs.split
    evaluator = runs.evaluator(parts.test)
    honest, leaking = (
        evaluator.evaluate_scorer(REFERENCES[name](dataset, counted)).ranks["sampled"].mean()
        for counted in (parts.train, parts.test)
    )
    middle, deviation = (NUM_CANDIDATES + 2) / 2, np.arange(NUM_CANDIDATES + 1).std() / len(parts.test) ** 0.5
    assert abs(honest - middle) <= BOUND * deviation  # ties count half, so ranks are more even than that
    if name == "popularity":
        assert leaking < middle - BOUND * deviation


@pytest.mark.slow
def test_what_has_seen_the_test_part_is_not_chance(
    untold: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = np.arange(len(untold.target.user))
    monkeypatch.setattr(stages, "TargetBatches", lambda data, _, *rest: TargetBatches(data, everything, *rest))
    _, folder = whole_run(made(untold, "finetune-all"), tmp_path)
    found = deviations(read_table(folder / "instances.parquet")["rank_sampled"])
    assert not is_chance(found), found

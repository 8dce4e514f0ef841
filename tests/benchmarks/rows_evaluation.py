"""Rows 'hard-evaluation', 'hard-recommend', 'hard-encode' and 'hard-over-all': what a trained model costs in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sizes import Size, straight_of
from straight import Straight
from timing import Row, alternate
from torch import Tensor

from finetune_kit.data.dataset import Dataset
from finetune_kit.recommendation.recommender import Recommender
from finetune_kit.training.assemble import Run
from finetune_kit.training.device import make_fabric
from finetune_kit.training.experiment import Experiment


def hard_evaluation(size: Size, dataset: Dataset) -> Row:
    """Rank the test part among all target items."""
    experiment = Experiment(size.epoch.config("uaf-hard"), dataset, make_fabric("cpu"))
    strategy, test = experiment.build_strategy(None).eval(), experiment.split.test
    evaluator, straight = experiment.evaluator(test), straight_of(strategy)
    users = len(np.unique(dataset.target.user[test]))
    row = Row("hard-evaluation", f"uaf-hard, full ranking of the test part of {dataset.name}", users=users)
    return alternate(
        row,
        lambda: evaluator.evaluate(strategy, experiment.fabric, ("full",)),
        lambda: straight_ranks(straight, experiment, test),
        size.rounds,
    )


def straight_ranks(straight: Straight, experiment: Experiment, instances: np.ndarray) -> np.ndarray:
    """Return the ranks of instances ``(instances,)``, each a row of its own."""
    dataset, length, size = experiment.dataset, experiment.config.data.max_length, 512
    ranks = []
    for start in range(0, len(instances), size):
        part = instances[start : start + size]
        sequence = torch.from_numpy(dataset.sequences(dataset.target.user[part], length))
        known = known_items(dataset, experiment.split.known, part)
        ranks.append(straight.ranks(sequence, torch.from_numpy(dataset.target.item[part]), known))
    return torch.cat(ranks).numpy()


def known_items(dataset: Dataset, known: np.ndarray, instances: np.ndarray) -> Tensor:
    """Return which items the users of instances have in training, ``(instances, num_target)`` bool."""
    mask = torch.zeros(len(instances), dataset.num_target_items, dtype=torch.bool)
    items: dict[int, list[int]] = {}
    for user, item in zip(dataset.target.user[known].tolist(), dataset.target.item[known].tolist(), strict=True):
        items.setdefault(user, []).append(item - 1)
    for row, user in enumerate(dataset.target.user[instances].tolist()):
        mask[row, items.get(user, [])] = True
    return mask


def hard_recommend(size: Size, dataset: Dataset) -> Row:
    """Find the ten best items of users; ours from raw ids to raw ids, the reference from and to dense ones."""
    config, fabric = size.epoch.config("uaf-hard"), make_fabric("cpu")
    strategy = Experiment(config, dataset, fabric).build_strategy(None).eval()
    straight, length = straight_of(strategy), size.epoch.length
    recommender = Recommender(Run(Path(), config, {}, dataset, strategy), fabric)
    user = np.arange(1, min(512, dataset.num_users) + 1)
    sequences, raw = torch.from_numpy(dataset.sequences(user, length)), np.array(dataset.raw_source_items())
    histories = [raw[items[items != 0] - 1].tolist() for items in sequences.numpy()]
    names = dataset.raw_users()[: len(user)]
    row = Row("hard-recommend", f"uaf-hard, ten best of {dataset.num_target_items} items", users=len(user))
    return alternate(
        row, lambda: recommender.recommend(names, histories), lambda: straight.best(sequences, 10), size.rounds
    )


@torch.no_grad()
def hard_encode(size: Size) -> Row:
    """Make user vectors of one large batch."""
    shape = size.step
    strategy, batch = shape.strategy("uaf-hard").eval(), shape.batch()
    straight = straight_of(strategy)
    row = Row("hard-encode", f"uaf-hard, vectors of {shape.users} users", users=shape.users)

    def reference() -> Tensor:
        return straight.vectors(batch.sequence, straight.gates(batch.sequence))

    return alternate(row, lambda: strategy.encode(batch), reference, size.rounds)


def hard_over_all(size: Size, dataset: Dataset) -> Row:
    """Evaluate uaf-hard, and finetune-all, both ours: what the policy costs."""
    fabric, evaluate = make_fabric("cpu"), {}
    for name in ("uaf-hard", "finetune-all"):
        experiment = Experiment(size.epoch.config(name), dataset, fabric)
        strategy, evaluator = experiment.build_strategy(None), experiment.evaluator(experiment.split.test)
        evaluate[name] = lambda of=strategy, by=evaluator: by.evaluate(of, fabric, ("full",))
    row = Row("hard-over-all", "evaluation of uaf-hard against finetune-all", against="our finetune-all")
    alternate(row, evaluate["uaf-hard"], evaluate["finetune-all"], size.rounds)
    row.remarks = {"times as long as finetune-all": float(np.median(row.ours) / np.median(row.reference))}
    return row

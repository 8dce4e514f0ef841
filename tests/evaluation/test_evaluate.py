from pathlib import Path

import numpy as np
import torch

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.split import split
from finetune_kit.evaluation.candidates import draw_candidates
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.sections import EvaluationOptions
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions


def test_ranks_equal_an_obvious_loop_in_batches_of_any_size(tmp_path: Path) -> None:
    Synthetic(SyntheticOptions(users=40, max_length=8)).prepare(tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    target, parts = dataset.target, split(dataset.target.user, "instance", 0)
    table = torch.randn(dataset.num_users, dataset.num_target_items, generator=torch.Generator().manual_seed(0))
    instances = np.sort(parts.test)
    drawn_for = target.user[instances], target.item[instances]
    candidates = draw_candidates(*drawn_for, dataset.num_target_items, 10, seed=3)
    train = list(zip(target.user[parts.train].tolist(), target.item[parts.train].tolist(), strict=True))
    full, sampled = [], []
    for index, own in zip(instances, candidates, strict=True):
        user, item = target.user[index], target.item[index]
        known = {other for u, other in train if u == user}
        scores = table[user - 1]
        rivals = [y for y in range(1, dataset.num_target_items + 1) if y != item and y not in known]
        full.append(1 + sum(bool(scores[y - 1] > scores[item - 1]) for y in rivals))
        sampled.append(1 + sum(bool(scores[y - 1] > scores[item - 1]) for y in own))
    for batch_size in (1, 3, 500):
        options = EvaluationOptions(num_candidates=10, batch_size=batch_size)
        evaluator = Evaluator(
            dataset, np.random.default_rng(0).permutation(parts.test), parts.train, options, 8, seed=3
        )
        found = evaluator.evaluate_scorer(lambda user: table[user - 1])
        assert found.instance.tolist() == instances.tolist()
        assert found.ranks["full"].tolist() == full
        assert found.ranks["sampled"].tolist() == sampled
        assert found.user.tolist() == sorted(set(target.user[instances].tolist()))

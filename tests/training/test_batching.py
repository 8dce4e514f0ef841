"""Batches of users against batches of instances: the same epoch, at less cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_runs import runner
from torch import Tensor

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.loading import TargetBatches
from finetune_kit.sections import Batching
from finetune_kit.strategy import Strategy
from finetune_kit.testing import randomise


def epoch_without_updates(
    strategy: Strategy, dataset: Dataset, instances: np.ndarray, batching: Batching
) -> tuple[float, dict[str, Tensor], int]:
    """Return the mean loss over instances, its gradients by name, and how many users were encoded."""
    strategy.zero_grad()
    batches = TargetBatches(dataset, instances, 16, 8, num_negatives=0, batching=batching)
    total, num_encoded = 0.0, 0
    for batch in batches.epoch(torch.Generator().manual_seed(0)):
        loss = strategy(batch) * len(batch) / len(instances)
        loss.backward()
        total += loss.item()
        num_encoded += len(batch.user)
    gradients = {name: parameter.grad for name, parameter in strategy.named_parameters() if parameter.requires_grad}
    return total, gradients, num_encoded


@pytest.mark.parametrize("name", ["finetune-all", "uaf-soft", "peterrec"])
def test_an_epoch_of_users_has_the_loss_and_gradients_of_one_of_instances(name: str, dataset: Dataset) -> None:
    made = runner(dataset, name, finetune={"loss": "softmax"})  # no negatives, which are drawn in the batches' order
    strategy = randomise(made.build_strategy(None)).train()
    users, by_user, num_users = epoch_without_updates(strategy, dataset, made.split.train, "users")
    rows, by_row, num_rows = epoch_without_updates(strategy, dataset, made.split.train, "instances")
    assert num_users < num_rows, "a user is to be encoded once"
    assert users == pytest.approx(rows, rel=1e-6)
    assert by_user.keys() == by_row.keys()
    for parameter, gradient in by_user.items():
        torch.testing.assert_close(gradient, by_row[parameter], atol=1e-6, rtol=1e-4)

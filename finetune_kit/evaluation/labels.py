"""Evaluate a strategy on a profile label: accuracy and macro F1, beside what guessing the commonest class gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_kit.data.loading import evaluation_batches
from finetune_kit.evaluation.evaluate import Encoder, choices, joined_choices
from finetune_kit.processes import here

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from finetune_kit.data.labelled import LabelledDataset


@dataclass(frozen=True)
class LabelEvaluation:
    """What came of predicting a label; arrays run parallel, one entry per user.

    Args:
        user: ``(users,)``.
        actual: ``(users,)``, index of the class, from 0.
        predicted: ``(users,)``, index of the class with the highest score; the first of several.
        gates: ``(users, blocks)`` the share of the fine-tuned branch, or None.
        probabilities: ``(users, blocks)`` the policy's probability of it, or None.
        skipped: ``(users, blocks)`` the share of a block that is skipped, or None.
    """

    user: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray
    gates: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    skipped: np.ndarray | None = None

    def metrics(self) -> dict[str, float]:
        """Return ``{"accuracy": …, "f1_macro": …}``."""
        return label_metrics(self.actual, self.predicted)

    def of(self, users: np.ndarray) -> LabelEvaluation:
        """Return the part of given users, by their places here."""
        told = (self.gates, self.probabilities, self.skipped)
        choices = [None if values is None else values[users] for values in told]
        return LabelEvaluation(self.user[users], self.actual[users], self.predicted[users], *choices)

    def columns(self) -> dict[str, np.ndarray]:
        """Return what ``instances.parquet`` holds."""
        return {"user": self.user, "class": self.actual, "predicted": self.predicted}


@dataclass(frozen=True)
class LabelEvaluator:
    """Predicts the label of users.

    Args:
        dataset: The dataset.
        instances: Indices of its instances, ``(n,)``; each belongs to another user.
        num_users: Users encoded at once.
        max_length: Length that source sequences are padded or cut to.
    """

    dataset: LabelledDataset
    instances: np.ndarray
    num_users: int
    max_length: int

    def of(self, instances: np.ndarray) -> LabelEvaluator:
        """Return an evaluator like this one on other instances."""
        return replace(self, instances=instances)

    @torch.no_grad()
    def evaluate(self, strategy: Encoder, fabric: Fabric) -> LabelEvaluation:
        """Return predictions, and gates where the strategy has them; leaves the strategy in evaluation mode."""
        strategy.eval()
        told = []
        for _, batch in evaluation_batches(self.dataset, self.instances, self.num_users, self.max_length):
            with fabric.autocast():
                encoded = strategy.encode(batch.to(fabric.device))
                scores = strategy.task.scores(encoded.vectors).float()  # (users, classes)
            predicted = scores.argmax(dim=1).cpu()
            told.append((batch.user, batch.positive - 1, predicted, choices(encoded)))
        *columns, chosen = zip(*here().collected(told), strict=True)
        user, actual, predicted = (torch.cat(part).numpy() for part in columns)
        return LabelEvaluation(user, actual, predicted, **joined_choices(chosen))


def label_metrics(actual: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return accuracy, and F1 averaged over the classes that occur in either, each in [0, 1].

    F1 of a class is 2 TP / (2 TP + FP + FN).

    Args:
        actual: ``(users,)``, classes.
        predicted: ``(users,)``, classes.
    """
    f1 = []
    for label in np.union1d(actual, predicted):
        hits = np.sum((actual == label) & (predicted == label))
        f1.append(2 * hits / (np.sum(actual == label) + np.sum(predicted == label)))
    return {"accuracy": float(np.mean(actual == predicted)), "f1_macro": float(np.mean(f1))}


def class_balance(dataset: LabelledDataset, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Return each class's share of the training and the test instances, by its name.

    Args:
        dataset: The dataset.
        train: Indices of the training instances.
        test: Indices of the test instances.
    """
    counts = {name: _shares(dataset, part) for name, part in (("train", train), ("test", test))}
    names = dataset.raw_target_items()
    return {name: {part: float(counts[part][k]) for part in counts} for k, name in enumerate(names)}


def majority(dataset: LabelledDataset, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Return the metrics of guessing the commonest class of the training instances for everybody."""
    actual = dataset.target.item[test] - 1
    return label_metrics(actual, np.full_like(actual, _shares(dataset, train).argmax()))


def _shares(dataset: LabelledDataset, part: np.ndarray) -> np.ndarray:
    return np.bincount(dataset.target.item[part] - 1, minlength=dataset.num_target_items) / len(part)

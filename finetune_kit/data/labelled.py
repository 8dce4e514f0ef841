"""A profile label seen as a target domain: each user with a known label has one instance, the classes are its items."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from finetune_kit.data.dataset import UNKNOWN, Dataset, Labels, Target
from finetune_kit.errors import DataError, did_you_mean
from finetune_kit.sections import label_of


def for_task(dataset: Dataset, task: str) -> Dataset:
    """Return the dataset with the target that a task asks for.

    Raises:
        OptionError: For a task that is neither ``items`` nor ``label:NAME``.
        DataError: For a label that the dataset lacks, or one with fewer than two classes.
    """
    label = label_of(task)
    if isinstance(dataset, LabelledDataset):
        if dataset.label == label:
            return dataset
        dataset = Dataset(dataset.path, dataset.manifest)
    if label is None:
        return dataset
    if label not in dataset.labels:
        known = ", ".join(dataset.labels) or "none"
        raise DataError(f"no label {label!r} in {dataset.name!r}.{did_you_mean(label, dataset.labels)} Labels: {known}")
    labelled = LabelledDataset(**{field.name: getattr(dataset, field.name) for field in fields(dataset)}, label=label)
    if labelled.num_target_items < 2:
        raise DataError(f"the label {label!r} of {dataset.path} has one class; telling classes apart needs two")
    return labelled


@dataclass(frozen=True)
class LabelledDataset(Dataset):
    """A dataset whose target is a profile label: instance (u, y) says that user u is of class y, counted from 1.

    Args:
        path: The folder.
        manifest: What its ``dataset.json`` says.
        label: The label's name.
    """

    label: str

    @property
    def _label(self) -> Labels:
        return self.labels[self.label]

    @cached_property
    def target(self) -> Target:
        """One instance per user whose class is known; its ``item`` is the class, from 1."""
        user = np.flatnonzero(self._label.value != UNKNOWN) + 1
        return Target(user, self._label.value[user - 1] + 1, np.zeros_like(user))

    @property
    def num_target_items(self) -> int:
        """Number of classes."""
        return len(self._label.classes)

    @property
    def target_items_hash(self) -> str:
        """SHA-256 of the label's name and classes."""
        return hashlib.sha256("\n".join([self.label, *self._label.classes]).encode()).hexdigest()

    def raw_target_items(self) -> list[str]:
        """Return the classes' names."""
        return list(self._label.classes)

"""The place at which all workers of a study stand, wherever they run: one folder, one dataset."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.errors import FinetuneKitError


@dataclass(frozen=True)
class Place:
    """What tasks share.

    Args:
        working_folder: Where the command was given; relative paths start there.
        folder: The study's folder.
        sign: A file in it that this process made.
        dataset: The dataset's folder, absolute.
        fingerprint: The dataset's content.
        task: What is learned on it.
    """

    working_folder: Path
    folder: Path
    sign: Path
    dataset: Path
    fingerprint: str
    task: str

    @classmethod
    def of(cls, folder: Path, sign: Path, dataset: Dataset, task: str) -> Place:
        """Return the place of a study that was begun in this process."""
        return cls(Path.cwd(), folder, sign, dataset.path.resolve(), dataset.fingerprint, task)

    def enter(self) -> Dataset:
        """Stand where the command was given, and return the dataset.

        Raises:
            FinetuneKitError: Where a worker does not see what all must share.
        """
        self._refuse_unseen(self.working_folder)
        os.chdir(self.working_folder)
        self._refuse_unseen(self.folder, self.sign)  # another machine may have a folder of that name
        self._refuse_unseen(self.dataset)
        dataset = Dataset.open(self.dataset)
        if dataset.fingerprint != self.fingerprint:
            raise FinetuneKitError(
                f"a worker on {platform.node()} sees another dataset at {str(self.dataset)!r}: its fingerprint is "
                f"{dataset.fingerprint[:12]}, not {self.fingerprint[:12]}; put one on a file system that all share"
            )
        return for_task(dataset, self.task)

    def _refuse_unseen(self, folder: Path, sign: Path | None = None) -> None:
        if not (sign or folder).exists():
            raise FinetuneKitError(
                f"a worker on {platform.node()} does not see {str(folder)!r}: put it on a file system that all "
                "machines share, at the same path"
            )

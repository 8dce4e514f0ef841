"""Progress of work in a worker, told to whoever hands out the tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finetune_kit.errors import StorageError, one_line
from finetune_kit.progress import Progress
from finetune_kit.workers.outcome import Ask

SECONDS = 0.25
"""Steps are told at most so often."""


@dataclass(frozen=True)
class Step:
    """How far a stage of a task has come.

    Args:
        stage: Its title.
        done: Steps of it that are done.
        total: Steps of it at most.
        note: Of the latest step, e.g. ``"epoch 3 best 0.1234"``.
    """

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Said:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class BaseIsThere:
    """Told once the pre-trained backbones that a task begins from stand."""


@dataclass(frozen=True)
class NoRoom:
    """A task's result where the disk is full, or can't be written: it would hit the others too."""

    reason: str

    @classmethod
    def of(cls, error: OSError | StorageError) -> NoRoom:
        """Return what an error says."""
        if isinstance(error, StorageError):
            return cls(str(error))
        return cls(f"{error.filename or 'reading or writing'}: {error.strerror or one_line(error)}")


class TellingProgress(Progress):
    """Tells `Step` and `Said`.

    Args:
        ask: How.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Tell of a stage's steps, not of each."""
        done, told = 0, float("-inf")

        def advance(steps: int, note: str = "") -> None:
            nonlocal done, told
            done += steps
            if (now := time.monotonic()) - told >= SECONDS:
                told = now
                self._ask.tell(Step(title, done, total, note))

        advance(0)
        yield advance

    def say(self, text: str) -> None:
        """Tell one line."""
        self._ask.tell(Said(text))

"""A trial in a worker: fine-tuning as in any run, judged on validation alone; the best one is measured later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.split import Split
from finetune_kit.errors import StorageError
from finetune_kit.strategy import Strategy
from finetune_kit.tracker import Tracker
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from finetune_kit.training.stages import Finetuning
from finetune_kit.workers.outcome import Ask, Job
from finetune_kit.workers.place import Place
from finetune_kit.workers.telling import BaseIsThere, NoRoom, TellingProgress


@dataclass(frozen=True)
class SeedRun:
    """One of a trial's runs.

    Args:
        sections: Its configuration, as plain values: options models of plugins may not be picklable.
        folder: Its run folder.
    """

    sections: Mapping[str, Mapping[str, Any]]
    folder: Path


@dataclass(frozen=True)
class TrialTask:
    """A trial on its way to a worker.

    Args:
        place: Its number.
        runs: A run per seed.
        bases: Where pre-trained backbones stand.
        is_chosen: Whether it was chosen: its runs are then gone on with to their end, and measured on the test part.
    """

    place: int
    runs: Sequence[SeedRun]
    bases: Path
    is_chosen: bool = False


@dataclass(frozen=True)
class Tried:
    """What came of a trial.

    Args:
        value: The best validation metric, over seeds the mean; where it was pruned, that of the first seed.
        best_epoch: The epoch that has it, of the first seed.
        epochs: Those trained, of the first seed.
        seconds: Spent on fine-tuning, all seeds together.
        is_pruned: Whether it was ended early.
    """

    value: float
    best_epoch: int
    epochs: int
    seconds: float
    is_pruned: bool = False


@dataclass(frozen=True)
class Epoch:
    """Asked by a worker after an epoch of a trial's first seed: is that enough?

    Args:
        epoch: From 1.
        value: The best validation metric so far.
        is_past: Whether it was trained before an interruption, so that nothing is to be decided.
    """

    epoch: int
    value: float
    is_past: bool = False


class Pruned(Exception):
    """Whoever hands out the trials has seen enough of this one."""


class Watcher(Tracker):
    """Tells a trial's epochs as they come, and ends it when it is told to."""

    def __init__(self, folder: Path, ask: Ask, monitor: str) -> None:
        super().__init__(folder)
        self._ask, self._monitor = ask, monitor
        self.history: list[Mapping[str, float]] = []

    @property
    def best(self) -> float:
        """The best validation metric so far."""
        return max(record[self._monitor] for record in self.history)

    def pruned(self) -> Tried:
        """Return what came of a trial that was ended after these epochs."""
        values = [record[self._monitor] for record in self.history]
        seconds = sum(record["seconds"] for record in self.history)
        return Tried(self.best, values.index(self.best) + 1, len(values), seconds, is_pruned=True)

    def go_on(self, stage: str, history: Sequence[Mapping[str, float]]) -> None:
        """Tell the epochs that are done."""
        for record in history:
            self.history.append(record)
            self._ask(Epoch(len(self.history), self.best, is_past=True))

    def record(self, stage: str, values: Mapping[str, float]) -> None:
        """Tell an epoch, and ask whether that is enough.

        Raises:
            Pruned: If it is.
        """
        self.history.append(values)
        if self._ask(Epoch(len(self.history), self.best)):
            raise Pruned


class Fitting(Finetuning):
    """Fine-tuning without what follows: nothing is measured on the test part, and ``last/`` is kept to go on from."""

    def _carry_out(self, strategy: Strategy, parts: Split, trackers: list[Tracker]) -> dict[str, Any]:
        fitted = self._fit(strategy, parts, trackers)
        best = fitted.history[fitted.best_epoch - 1][self.experiment.monitor]
        return {
            "value": best,
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
            "seconds": fitted.seconds,
        }


def prepared(place: Place, device: str, precision: str) -> Job:
    """Prepare a worker."""
    return TrialJob(place.enter(), make_fabric(device, precision))


@dataclass(frozen=True)
class TrialJob:
    """Carries trials out in a worker."""

    dataset: Dataset
    fabric: Fabric

    def __call__(self, task: TrialTask, ask: Ask) -> Tried | NoRoom | None:
        """Carry one out; None for a chosen one."""
        try:
            return self._finish(task, ask) if task.is_chosen else self._try(task, ask)
        except (OSError, StorageError) as error:
            return NoRoom.of(error)

    def _try(self, task: TrialTask, ask: Ask) -> Tried:
        facts = []
        for number, (runner, folder, base) in enumerate(self._begun(task, ask)):
            watcher = Watcher(folder, ask, runner.monitor)
            runner.watchers = () if number else (watcher,)  # the first seed decides, as it does for all trials
            try:
                with runner.deterministically():
                    facts.append(Fitting(runner, folder, base).carry_out())
            except Pruned:
                return watcher.pruned()
        value = sum(fact["value"] for fact in facts) / len(facts)
        seconds = sum(fact["seconds"] for fact in facts)
        return Tried(value, facts[0]["best_epoch"], facts[0]["epochs"], seconds)

    def _finish(self, task: TrialTask, ask: Ask) -> None:
        for runner, folder, base in self._begun(task, ask):
            if not (folder / "metrics.json").exists():
                runner.finetune(folder, base)

    def _begun(self, task: TrialTask, ask: Ask) -> list[tuple[Runner, Path, Path | None]]:
        """Return what carries each run through, its folder, and its pre-trained backbone, which is there then."""
        begun = []
        for run in task.runs:
            runner = Runner(resolve_config(run.sections), self.dataset, self.fabric, TellingProgress(ask), resume=True)
            begun.append((runner, run.folder, runner.pretrain(task.bases) if runner.needs_base else None))
        ask.tell(BaseIsThere())
        return begun

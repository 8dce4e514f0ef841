"""The trials of a search, in an Optuna study that several commands may share: a journal in the search's folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune_kit.errors import OptionError
from finetune_kit.files import storing
from finetune_kit.presence import others_at_work
from finetune_kit.seeding import derive_seed
from finetune_kit.studies.plan import Sweep

JOURNAL = "journal.log"
NAME = "sweep"
WARM_UP = 4
"""Whole trials, and epochs of a trial, before median ends one."""
State = Literal["waiting", "running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Row:
    """A trial as it stands.

    Args:
        place: Its number, from 0.
        state: How it stands.
        values: What it tries, by path.
        value: Its best validation metric, over seeds the mean; of a pruned one that of its first seed; else None.
        about: ``best_epoch``, ``epochs`` and ``seconds``, as far as known; ``fault``, why it failed.
    """

    place: int
    state: State
    values: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """A trial that this command is to carry out."""

    place: int
    values: Mapping[str, Any]
    trial: Any


def import_optuna() -> Any:
    """Return Optuna, silent.

    Raises:
        OptionError: When it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise OptionError("ftkit sweep needs Optuna: pip install 'finetune-kit[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """A search's trials, as one of the commands that work on it sees them.

    Each has a place, from 0, and what is tried there depends on the seed, the place, and for tpe on the trials before
    it. One that failed is tried again, with the same values, by the next command.

    Args:
        sweep: What is searched.
        folder: The search's folder.
        name: That of this command, as `at_work` gave it.
    """

    def __init__(self, sweep: Sweep, folder: Path, name: str) -> None:
        self._optuna, self._sweep, self._folder, self._name = import_optuna(), sweep, folder, name
        with self._quiet(), self._alone():
            self._study = self._open()

    def next(self) -> Given | None:
        """Return a trial to carry out; None where there is none left, though others may be at work on some."""
        with self._quiet(), self._alone():
            latest = self._latest()
            alive = {self._name, *others_at_work(self._folder, self._name)}
            for place, frozen in sorted(latest.items()):
                if frozen.state == self._states.RUNNING and frozen.user_attrs.get("owner") not in alive:
                    return self._taken(place, self._optuna.trial.Trial(self._study, frozen._trial_id))
            for place in range(self._sweep.num_trials):
                frozen = latest.get(place)
                if frozen is None:
                    return self._begun(place)
                if frozen.state == self._states.FAIL and frozen.user_attrs.get("owner") not in alive:
                    return self._begun(place, frozen.params)
        return None

    def report(self, given: Given, epoch: int, value: float) -> bool:
        """Take the best validation metric up to an epoch of a trial's first seed; return whether it is to end."""
        with self._quiet():
            given.trial.report(value, epoch)
            return given.trial.should_prune()

    def close(self, given: Given, state: State, value: float | None = None, **about: Any) -> None:
        """Take what came of a trial."""
        states = {"complete": self._states.COMPLETE, "pruned": self._states.PRUNED, "failed": self._states.FAIL}
        with self._quiet():
            for name, fact in {**about, **({} if value is None else {"value": value})}.items():
                given.trial.set_user_attr(name, fact)
            number = given.trial.number
            self._study.tell(number, value if state == "complete" else None, state=states[state])

    def rows(self) -> list[Row]:
        """Return how all trials stand, by place; those that nobody has begun among them."""
        with self._quiet():
            latest = self._latest()
        return [self._row(place, latest.get(place)) for place in range(max([self._sweep.num_trials - 1, *latest]) + 1)]

    @property
    def _states(self) -> Any:
        return self._optuna.trial.TrialState

    def _open(self) -> Any:
        journal = self._optuna.storages.journal
        path = str(self._folder / JOURNAL)
        lock = journal.JournalFileOpenLock(path) if os.name == "nt" else None
        storage = self._optuna.storages.JournalStorage(journal.JournalFileBackend(path, lock_obj=lock))
        return self._optuna.create_study(
            study_name=NAME, storage=storage, direction="maximize", load_if_exists=True, pruner=self._pruner()
        )

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self._sweep.options.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=WARM_UP, n_warmup_steps=WARM_UP)
        if self._sweep.options.pruner == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
        return pruners.NopPruner()

    def _sampler(self, place: int) -> Any:
        """Return what draws a trial's values: a fresh one, so that an interrupted search draws as any other."""
        seed = derive_seed(self._sweep.seed, "sweep", place) % 2**32
        samplers = self._optuna.samplers
        if self._sweep.sampler == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True)
        return samplers.RandomSampler(seed=seed)

    def _begun(self, place: int, params: Mapping[str, Any] | None = None) -> Given:
        """Begin a trial: with what it was tried with before, with a grid's combination, or with drawn values."""
        if params is None and self._sweep.grid:
            values = self._sweep.grid[place]
            params = {dimension.path: dimension.stored(values[dimension.path]) for dimension in self._sweep.space}
        if params is not None:
            self._study.enqueue_trial(dict(params), user_attrs={"place": place})
        self._study.sampler = self._sampler(place)
        trial = self._study.ask()
        return self._taken(trial.user_attrs.get("place", place), trial)

    def _taken(self, place: int, trial: Any) -> Given:
        trial.set_user_attr("place", place)
        trial.set_user_attr("owner", self._name)
        values = {dimension.path: dimension.suggest(trial) for dimension in self._sweep.space}
        return Given(place, values, trial)

    def _latest(self) -> dict[int, Any]:
        """Return the latest try of each trial, by place; one that was killed before it had one has the first free."""
        tries = [frozen for frozen in self._study.get_trials(deepcopy=False) if frozen.state != self._states.WAITING]
        latest = {frozen.user_attrs["place"]: frozen for frozen in tries if "place" in frozen.user_attrs}
        for frozen in tries:
            if "place" not in frozen.user_attrs:
                latest[next(place for place in range(len(tries)) if place not in latest)] = frozen
        return latest

    def _row(self, place: int, frozen: Any) -> Row:
        if frozen is None:
            return Row(place, "waiting")
        states: dict[Any, State] = {
            self._states.COMPLETE: "complete",
            self._states.PRUNED: "pruned",
            self._states.FAIL: "failed",
        }
        values = {
            dimension.path: dimension.value(frozen.params[dimension.path])
            for dimension in self._sweep.space
            if dimension.path in frozen.params
        }
        about = {name: fact for name, fact in frozen.user_attrs.items() if name not in ("place", "owner", "value")}
        return Row(place, states.get(frozen.state, "running"), values, frozen.user_attrs.get("value"), about)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Run a block while no other command of this search runs one."""
        lock = self._optuna.storages.journal.JournalFileOpenLock(str(self._folder / ".trials"))
        with storing(self._folder / JOURNAL):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Leave Optuna's warnings out; a full disk becomes one line."""
        with warnings.catch_warnings(), storing(self._folder / JOURNAL):
            warnings.simplefilter("ignore")
            yield

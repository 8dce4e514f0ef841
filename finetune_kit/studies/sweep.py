"""A search from beginning to end: hand out trials, choose one on validation, measure it, write what was found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetune_kit.board import Board
from finetune_kit.comparison.execute import ERROR, note_fault
from finetune_kit.comparison.plan import deciding
from finetune_kit.config import Config, to_toml
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import FinetuneKitError, StorageError
from finetune_kit.files import read_metrics, write_text
from finetune_kit.foreign import one_name
from finetune_kit.presence import at_work, sign_of
from finetune_kit.studies import plan
from finetune_kit.studies.plan import Sweep
from finetune_kit.studies.study import Given, Row, Study, import_optuna
from finetune_kit.studies.table import write_rows
from finetune_kit.studies.trial import Epoch, SeedRun, TrialTask, Tried, prepared
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from finetune_kit.workers.here import Here
from finetune_kit.workers.outcome import LATER, Outcome, Workers
from finetune_kit.workers.place import Place
from finetune_kit.workers.telling import BaseIsThere, NoRoom, Said, Step

BEST = "best.toml"
"""The best trial's configuration, which `ftkit run --config` takes."""


@dataclass(frozen=True)
class Found:
    """What a search has found so far.

    Args:
        folder: Its folder.
        rows: All trials, by place.
        best: The best of the whole ones; None where there is none yet.
        runs: Seed to run folder of the best; empty until it has been chosen and measured.
        num_elsewhere: Trials that other commands are at work on; the last command chooses.
    """

    folder: Path
    rows: list[Row]
    best: Row | None
    runs: Mapping[int, Path]
    num_elsewhere: int = 0


@dataclass
class Search:
    """A search on its way.

    Args:
        sweep: What is searched.
        dataset: The dataset, as the task sees it.
        folder: Where it goes; pre-trained backbones go beside it, below ``pretrained/``.
        workers: Who carries trials out.
        board: Who is told.
    """

    sweep: Sweep
    dataset: Dataset
    folder: Path
    workers: Workers = field(default_factory=Here)
    board: Board = field(default_factory=Board)
    _in_hand: dict[int, Given] = field(default_factory=dict, init=False)
    _held: Given | None = field(default=None, init=False)
    _making: dict[tuple[Path, ...], int] = field(default_factory=dict, init=False)
    """Pre-trained backbones, one per seed, that are being made, with the trial that makes them."""

    @property
    def device(self) -> str:
        """The type of the device that trials compute on."""
        run = self.sweep.shared.run
        return make_fabric(run.device, run.precision).device.type

    def refuse_early(self) -> None:
        """Raise now what would else be raised hours later.

        Raises:
            FinetuneKitError: Without Optuna, for another search in the folder, or a strategy that can't be built.
        """
        import_optuna()
        plan.refuse_foreign(self.folder)
        plan.refuse_other(self.folder, self.sweep.asked(self.dataset.fingerprint))
        values = self.sweep.grid[0] if self.sweep.grid else {}
        self._runner(self.sweep.config(values)).refuse_early()

    def carry_out(self) -> Found:
        """Carry out what is missing; return what was found.

        Raises:
            StorageError: When the disk is full.
            FinetuneKitError: When no trial succeeded.
        """
        asked = self.sweep.asked(self.dataset.fingerprint)
        with at_work(self.folder) as name:
            if not (self.folder / plan.FILE).exists():
                plan.write_record(self.folder, asked, {})
            study = Study(self.sweep, self.folder, name)
            rows = study.rows()
            finished = sum(row.state in ("complete", "pruned") for row in rows)
            self.board.begin(len(rows), finished)
            run = self.sweep.shared.run
            place = Place.of(self.folder, sign_of(self.folder, name), self.dataset, run.task)
            prepare = partial(prepared, place, run.device, run.precision)
            hear = partial(self._hear, study)
            with closing(self.workers.carry_out(prepare, self._tasks(study), hear)) as outcomes:
                for outcome in outcomes:
                    self._close(study, outcome)
            return self._found(study, asked)

    def folders(self, row: Row) -> dict[int, Path]:
        """Return a trial's run folders, by seed."""
        return {seed: self._run_folder(row.place, seed, row.values) for seed in self.sweep.seeds}

    def _tasks(self, study: Study) -> Iterator[Any]:
        """Yield trials as they are asked for, and in the end the best one, to be measured."""
        while True:
            given = self._held or study.next()
            self._held = None
            if given is None:
                break
            bases = self._bases(given.values)
            if bases in self._making:
                self._held = given
                yield LATER
                continue
            if not all((base / "metrics.json").exists() for base in bases):
                self._making[bases] = given.place
            self._in_hand[given.place] = given
            self.board.start(given.place, self._title(given.place, given.values))
            yield self._task(given.place, given.values)
        while self._in_hand:
            yield LATER
        rows = study.rows()
        best = best_of(rows)
        if best is None or any(row.state == "running" for row in rows):
            return  # the last command chooses
        if not all((folder / "metrics.json").exists() for folder in self.folders(best).values()):
            self.board.start(-1, f"measuring trial {best.place}")
            yield self._task(best.place, best.values, is_chosen=True)

    def _task(self, place: int, values: Mapping[str, Any], *, is_chosen: bool = False) -> TrialTask:
        runs = [
            SeedRun(self.sweep.config(values, seed).tables(), self._run_folder(place, seed, values))
            for seed in self.sweep.seeds
        ]
        return TrialTask(place, runs, self.folder.parent / "pretrained", is_chosen)

    def _bases(self, values: Mapping[str, Any]) -> tuple[Path, ...]:
        """Return where a trial's pre-trained backbones stand, or will stand, one per seed; none where it needs none."""
        runners = [self._runner(self.sweep.config(values, seed)) for seed in self.sweep.seeds]
        root = self.folder.parent / "pretrained"
        return tuple(runner.pretrained_folder(root) for runner in runners if runner.needs_base)

    def _runner(self, config: Config) -> Runner:
        return Runner(config, self.dataset, make_fabric(config.run.device, config.run.precision))

    def _run_folder(self, place: int, seed: int, values: Mapping[str, Any]) -> Path:
        decides = {"dataset": self.dataset.fingerprint, **deciding(self.sweep.config(values, seed), defaults=False)}
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        return self.folder / "trials" / f"{place:03d}-s{seed}-{digest}"

    def _title(self, place: int, values: Mapping[str, Any]) -> str:
        return f"trial {place}: {plan.shown(values)}"

    def _hear(self, study: Study, task: TrialTask, message: Any) -> bool | None:
        given = self._in_hand.get(task.place)
        number = -1 if task.is_chosen else task.place
        if isinstance(message, Epoch) and given is not None:
            return study.report(given, message.epoch, message.value) and not message.is_past
        if isinstance(message, BaseIsThere):
            self._release(task.place)
        elif isinstance(message, Step):
            self.board.step(number, message)
        elif isinstance(message, Said) and not task.is_chosen:
            self.board.said(f"trial {task.place}", message.text)
        return None

    def _release(self, place: int) -> None:
        """Let others begin on the backbone that a trial was to make; if it is not there, the next one makes it."""
        self._making = {base: maker for base, maker in self._making.items() if maker != place}

    def _close(self, study: Study, outcome: Outcome) -> None:
        task, result = outcome.task, outcome.result
        self._release(task.place)
        if isinstance(result, NoRoom):
            raise StorageError(result.reason)
        if task.is_chosen:
            if outcome.fault:
                raise FinetuneKitError(f"trial {task.place} was chosen, but can't be measured: {outcome.fault}")
            self._tidy(task)
            return
        given = self._in_hand.pop(task.place)
        title = self._title(given.place, given.values)
        if outcome.fault:
            fault = note_fault(task.runs[0].folder, outcome.fault, outcome.where)
            study.close(given, "failed", fault=fault)
            self.board.end(task.place, title, fault)
            return
        assert isinstance(result, Tried)
        about = {"best_epoch": result.best_epoch, "epochs": result.epochs, "seconds": result.seconds}
        study.close(given, "pruned" if result.is_pruned else "complete", result.value, **about)
        note = f"{self.sweep.monitor} {result.value:.4f} in epoch {result.best_epoch}"
        note += f", pruned after epoch {result.epochs}" if result.is_pruned else ""
        self.board.end(task.place, title, note=note)
        rows = study.rows()
        if (best := best_of(rows)) is not None:
            self.board.best(f"best {best.value:.4f} of trial {best.place}")
        for row in rows:
            if row.state in ("complete", "pruned") and row != best:
                for last in self.folder.glob(f"trials/{row.place:03d}-*/last"):
                    shutil.rmtree(last, ignore_errors=True)  # to go on by, and as large as three models

    def _tidy(self, task: TrialTask) -> None:
        for run in task.runs:
            shutil.rmtree(run.folder / "last", ignore_errors=True)
            (run.folder / ERROR).unlink(missing_ok=True)

    def _found(self, study: Study, asked: Mapping[str, Any]) -> Found:
        """Write what was found, as far as it is known."""
        rows = study.rows()
        running = sum(row.state == "running" for row in rows)
        best = best_of(rows)
        runs = {} if running or best is None else self.folders(best)
        write_rows(self.folder, rows, self.sweep.space)
        if best is None:
            if running:
                return Found(self.folder, rows, None, {}, running)
            reasons = "; ".join(dict.fromkeys(row.about["fault"] for row in rows if row.state == "failed"))
            raise FinetuneKitError(f"no trial succeeded: {reasons}; the same command tries them again")
        if runs:
            config = self.sweep.config(best.values)
            files = {"dataset": str(self.dataset.path.resolve()), "dataset_fingerprint": self.dataset.fingerprint}
            write_text(self.folder / BEST, to_toml({**config.tables(), "files": files}))
        chosen = {
            "trial": best.place,
            "values": dict(best.values),
            self.sweep.monitor: best.value,
            "runs": {str(seed): folder.relative_to(self.folder).as_posix() for seed, folder in runs.items()},
            "test": {str(seed): read_metrics(folder)["test"] for seed, folder in runs.items()},
        }
        plan.write_record(self.folder, asked, {"trials": len(rows), "best": chosen if runs else None})
        return Found(self.folder, rows, best, runs, running)


def best_of(rows: list[Row]) -> Row | None:
    """Return the whole trial with the best validation metric, the first of equal ones."""
    whole = [row for row in rows if row.state == "complete"]
    return max(whole, key=lambda row: (row.value, -row.place), default=None)


def default_folder(dataset: str, strategy: str) -> Path:
    """Return where a search goes that was given no folder."""
    return Path("runs") / one_name(f"sweep-{strategy}-{dataset}")

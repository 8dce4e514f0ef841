"""The runs of a comparison, carried out by several workers at once; each is the run that it is in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from finetune_kit.board import Board
from finetune_kit.comparison.execute import Execution, note_fault
from finetune_kit.comparison.plan import Cell
from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import StorageError
from finetune_kit.presence import sign_of
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner
from finetune_kit.workers.outcome import LATER, Ask, Job, Outcome, Workers
from finetune_kit.workers.place import Place
from finetune_kit.workers.telling import BaseIsThere, NoRoom, Said, Step, TellingProgress


@dataclass(frozen=True)
class CellTask:
    """A cell on its way to a worker.

    Args:
        number: Its place in the order of all.
        sections: Its configuration, as plain values: options models of plugins may not be picklable.
        folder: Its run folder.
        bases: Where pre-trained backbones stand.
    """

    number: int
    sections: Mapping[str, Mapping[str, Any]]
    folder: Path
    bases: Path


@dataclass
class ParallelExecution:
    """Cells on their way to run folders, several at once.

    Args:
        execution: The cells, and what each becomes.
        workers: Who carries them out.
        board: Who is told.
        name: That of this command, as `at_work` gave it.
    """

    execution: Execution
    workers: Workers
    board: Board
    name: str
    _failures: dict[Path, str] = field(default_factory=dict)
    _making: dict[Path, int] = field(default_factory=dict)
    """Pre-trained backbones that are being made, with the number of the cell that makes each."""
    _bases: dict[int, Path] = field(default_factory=dict)

    def carry_out(self) -> dict[Path, str]:
        """Run what is not there yet; return why runs failed, by folder. They don't stop the others.

        Raises:
            StorageError: When the disk is full.
        """
        execution = self.execution
        cells = list(enumerate(execution.in_order(), start=1))
        self.board.begin(len(cells))
        for number, cell in cells:
            if execution.is_finished(cell):
                self.board.there_already(number, execution.title(cell))
                execution.tidy(cell)
        missing = {number: cell for number, cell in cells if not execution.is_finished(cell)}
        if not missing:
            return {}
        self._bases = {number: base for number, cell in missing.items() if (base := self._base(cell)) is not None}
        sign = sign_of(execution.folder, self.name)
        place = Place.of(execution.folder, sign, execution.dataset, execution.cells[0].config.run.task)
        run = execution.cells[0].config.run
        prepare = partial(prepared, place, run.device, run.precision)
        with closing(self.workers.carry_out(prepare, self._tasks(missing), partial(self._hear, missing))) as outcomes:
            for outcome in outcomes:
                self._close(missing[outcome.task.number], outcome)
        return self._failures

    def _base(self, cell: Cell) -> Path | None:
        """Return where a cell's pre-trained backbone stands, or will stand; None where it needs none."""
        runner = self.execution.runner(cell)
        return runner.pretrained_folder(self.execution.bases) if runner.needs_base else None

    def _tasks(self, missing: Mapping[int, Cell]) -> Iterator[Any]:
        """Yield cells, those first whose backbone nobody else is making at the moment."""
        waiting = list(missing)
        while waiting:
            number = next((number for number in waiting if self._bases.get(number) not in self._making), None)
            if number is None:
                yield LATER
                continue
            waiting.remove(number)
            cell, base = missing[number], self._bases.get(number)
            if base is not None and not (base / "metrics.json").exists():
                self._making[base] = number
            self.board.start(number, self.execution.title(cell))
            yield CellTask(number, cell.config.tables(), self.execution.path(cell), self.execution.bases)

    def _hear(self, missing: Mapping[int, Cell], task: CellTask, message: Any) -> None:
        if isinstance(message, BaseIsThere):
            self._release(task.number)
        elif isinstance(message, Step):
            self.board.step(task.number, message)
        elif isinstance(message, Said):
            self.board.said(self.execution.title(missing[task.number]), message.text)

    def _release(self, number: int) -> None:
        """Let others begin on the backbone that a cell was to make; if it is not there, the next one makes it."""
        self._making = {base: maker for base, maker in self._making.items() if maker != number}

    def _close(self, cell: Cell, outcome: Outcome) -> None:
        self._release(outcome.task.number)
        if isinstance(outcome.result, NoRoom):
            raise StorageError(outcome.result.reason)
        fault = outcome.fault and note_fault(self.execution.path(cell), outcome.fault, outcome.where)
        if fault:
            self._failures[self.execution.path(cell)] = fault
        else:
            self.execution.tidy(cell)
        self.board.end(outcome.task.number, self.execution.title(cell), fault)


def prepared(place: Place, device: str, precision: str) -> Job:
    """Prepare a worker."""
    return CellJob(place.enter(), make_fabric(device, precision))


@dataclass(frozen=True)
class CellJob:
    """Carries cells out in a worker."""

    dataset: Dataset
    fabric: Fabric

    def __call__(self, task: CellTask, ask: Ask) -> NoRoom | None:
        """Run one cell, as `Execution` does."""
        runner = Runner(resolve_config(task.sections), self.dataset, self.fabric, TellingProgress(ask), resume=True)
        try:
            base = runner.pretrain(task.bases) if runner.needs_base else None
            ask.tell(BaseIsThere())
            runner.finetune(task.folder, base)
        except (OSError, StorageError) as error:
            return NoRoom.of(error)
        return None

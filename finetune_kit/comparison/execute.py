"""The runs of a comparison, carried out one after the other; those that are there are not run again."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_fabric import Fabric

from finetune_kit.comparison.plan import Cell, deciding
from finetune_kit.comparison.results import Result, row_name
from finetune_kit.config import read_toml, resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import FinetuneKitError, OptionError, StorageError, one_line
from finetune_kit.files import write_text
from finetune_kit.progress import Progress, duration
from finetune_kit.training.run import Runner

ERROR = "error.txt"
"""The file in a run's folder that says where it crashed."""


@dataclass
class Execution:
    """Cells on their way to run folders.

    Args:
        cells: The cells.
        dataset: The dataset, as their task sees it.
        fabric: Device and precision.
        folder: The comparison's folder; runs go below ``runs/`` in it, pre-trained backbones below ``pretrained/``
            beside it, where `ftkit run` has them too.
        progress: Who is told.
    """

    cells: Sequence[Cell]
    dataset: Dataset
    fabric: Fabric
    folder: Path
    progress: Progress = field(default_factory=Progress)

    @property
    def bases(self) -> Path:
        """Where pre-trained backbones stand."""
        return self.folder.parent / "pretrained"

    def path(self, cell: Cell) -> Path:
        """Return a cell's run folder."""
        return self.folder / "runs" / cell.folder(self.dataset.fingerprint)

    def title(self, cell: Cell) -> str:
        """Return how a cell is called in progress lines."""
        tuned = [f"{path}={value}" for path, value in cell.tuned.items()]
        return ", ".join([row_name(cell.setting, (other.setting for other in self.cells)), *tuned, f"seed {cell.seed}"])

    def is_finished(self, cell: Cell) -> bool:
        """Return whether a cell's run is there."""
        return (self.path(cell) / "metrics.json").exists()

    def refuse_early(self) -> None:
        """Raise now what would else be raised hours later: folders of something else, damaged runs, failing builds."""
        cells: dict[Path, Cell] = {}
        for cell in self.cells:
            other = cells.setdefault(path := self.path(cell), cell)
            if other is not cell:
                raise OptionError(f"{self.title(other)} and {self.title(cell)} are the same run; keep one of them")
            _refuse_other_options(path, cell)
            if self.is_finished(cell):
                Result.read(cell.setting, cell.seed, path).refuse_damaged()
        missing = [cell for cell in self.cells if not self.is_finished(cell)]
        split, built = set(), set()
        for cell in missing:
            configuration, parts = (cell.setting, *map(str, cell.tuned.values())), (cell.seed, cell.setting.fraction)
            runner = self.runner(cell)
            if configuration not in built:
                runner.refuse_early()
            elif parts not in split:
                _ = runner.split  # drawn by the seed: another may leave a part empty, or items unseen
            built.add(configuration)
            split.add(parts)

    def carry_out(self) -> dict[Path, str]:
        """Run what is not there yet, seed by seed; return why runs failed, by folder. They don't stop the others."""
        failures, clock = {}, _Clock(sum(not self.is_finished(cell) for cell in self.cells))
        for number, cell in enumerate(self.in_order(), start=1):
            title = f"{number}/{len(self.cells)} {self.title(cell)}"
            if self.is_finished(cell):
                self.progress.say(f"{title}: there already")
                self.tidy(cell)
                continue
            self.progress.say(title)
            try:
                self._run(cell)
                self.progress.say(f"  {clock.tick()}")
            except (OSError, StorageError):  # a full disk: it would hit the others too
                raise
            except Exception as error:  # a third party's strategy may raise anything
                reason = failures[self.path(cell)] = self._failed(cell, error)
                self.progress.say(f"warning: {self.title(cell)} failed: {reason}")
                clock.tick()
        return failures

    def in_order(self) -> Iterator[Cell]:
        """Yield cells seed by seed, so that a whole table of one seed is there early."""
        for seed in dict.fromkeys(cell.seed for cell in self.cells):
            yield from (cell for cell in self.cells if cell.seed == seed)

    def _run(self, cell: Cell) -> None:
        runner, folder = self.runner(cell, self.progress), self.path(cell)
        base = runner.pretrain(self.bases) if runner.needs_base else None
        runner.finetune(folder, base)
        self.tidy(cell)

    def tidy(self, cell: Cell) -> None:
        """Remove what a finished run needs no more."""
        shutil.rmtree(self.path(cell) / "last", ignore_errors=True)  # to go on by, and as large as three models
        (self.path(cell) / ERROR).unlink(missing_ok=True)  # of an earlier try

    def runner(self, cell: Cell, progress: Progress | None = None) -> Runner:
        """Return what carries a cell through."""
        progress = progress or Progress()
        return Runner(cell.config, self.dataset, self.fabric, progress, resume=True)

    def _failed(self, cell: Cell, error: Exception) -> str:
        """Return in one line why a cell failed; what may be our fault leaves its traceback in the run's folder."""
        if isinstance(error, FinetuneKitError):
            return str(error)
        where = "".join(traceback.format_exception(error))
        return note_fault(self.path(cell), one_line(error, with_type=True)[:200], where)


def note_fault(folder: Path, fault: str, where: str) -> str:
    """Return why a run failed, in one line; a traceback, where there is one, is left in the run's folder."""
    if not where:
        return fault
    write_text(folder / ERROR, where)
    return f"{fault}; {folder / ERROR} shows where"


@dataclass
class _Clock:
    """Tells how long a run took, and how long the others may take."""

    left: int
    done: int = 0
    started: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)

    def tick(self) -> str:
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.left, self.done = self.left - 1, self.done + 1
        rest = self.left * (now - self.started) / self.done
        return duration(took) + (f", about {duration(rest)} to go" if self.left else "")


def _refuse_other_options(folder: Path, cell: Cell) -> None:
    """Raise if a cell's folder holds a run whose options differ: defaults have changed since it was made."""
    path = folder / "config.toml"
    if not path.exists():
        return
    try:
        was = deciding(resolve_config(read_toml(path)))
    except FinetuneKitError as error:
        raise OptionError(f"{path} is not of this version: {error}; delete {folder} to run it anew") from None
    for section, options in deciding(cell.config).items():
        for option, value in options.items():
            if (old := was[section].get(option)) != value:
                raise OptionError(
                    f"{str(folder)!r} was made when the default of {section}.{option} was {old!r}; now it is "
                    f"{value!r}; name another --output"
                )

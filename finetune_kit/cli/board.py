"""A whole study in one view on stderr: bars of what runs and a line on all on a terminal, a line per run elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from finetune_kit.board import Board
from finetune_kit.cli.output import stderr, warn
from finetune_kit.foreign import visible
from finetune_kit.progress import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from finetune_kit.workers.telling import Step

NARROW = 90
"""Columns of a terminal below which bars are left out."""


class ConsoleBoard(Board):
    """Shows a study; what several runs warn of is said once.

    Args:
        unit: What one run is called in the line on all, e.g. ``"runs"``.
    """

    def __init__(self, unit: str = "runs") -> None:
        self._console, self._unit = stderr(), unit
        self._said: set[str] = set()
        self._bars: Bars | None = None
        self._rows: dict[int, TaskID] = {}
        self._begun: dict[int, float] = {}
        self._total = self._done = self._before = self._failed = 0
        self._started = time.monotonic()
        self._best = ""

    def begin(self, total: int, finished: int = 0) -> None:
        """Show the line on all."""
        self._total, self._before = total, finished
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._bars = self._make_bars()
            self._all = self._bars.add_task("", total=total, completed=finished, note="")
            self._bars.start()
            self._tell_all()

    def there_already(self, number: int, title: str) -> None:
        """Print a line."""
        self._before += 1
        self._console.print(f"{number}/{self._total} {title}: there already")
        self._tell_all()

    def start(self, number: int, title: str) -> None:
        """Add a row."""
        now = self._begun[number] = time.monotonic()
        if not self._done and len(self._begun) == 1:
            self._started = now  # not while workers got ready
        if self._bars is not None:
            self._rows[number] = self._bars.add_task(visible(title), total=None, note="")
        self._tell_all()

    def step(self, number: int, step: Step) -> None:
        """Move a row."""
        if self._bars is not None and number in self._rows:
            note = " ".join(filter(None, (step.stage, step.note)))
            self._bars.update(self._rows[number], completed=step.done, total=step.total, note=note)

    def said(self, title: str, text: str) -> None:
        """Print a line above the rows, unless it was a repeated warning or the news of a backbone reused."""
        if text.endswith("(reused)") or (text.startswith("warning: ") and text in self._said):
            return
        self._said.add(text)
        if text.startswith("warning: "):
            self._warn(text.removeprefix("warning: "))
        else:
            self._console.print(f"{title}: {text}")

    def end(self, number: int, title: str, fault: str = "", note: str = "") -> None:
        """Take a row away, print what came of it."""
        self._done += 1
        self._failed += bool(fault)
        took = duration(time.monotonic() - self._begun.pop(number, time.monotonic()))
        if self._bars is not None and number in self._rows:
            self._bars.remove_task(self._rows.pop(number))
        if fault:
            self._warn(f"{title} failed: {fault}")
        else:
            count = f"{self._before + self._done}/{self._total}"
            told = "" if self._bars is not None else self._to_go()
            self._console.print(", ".join(filter(None, (f"{count} {title}: {note or took}", note and took, told))))
        self._tell_all()

    def best(self, text: str) -> None:
        """Show it in the line on all."""
        self._best = text
        self._tell_all()

    def close(self) -> None:
        """Take all rows away."""
        if self._bars is not None:
            for row in (*self._rows.values(), self._all):
                self._bars.remove_task(row)
            self._rows.clear()
            self._bars.stop()
            self._bars = None

    def _make_bars(self) -> Bars:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        bars = () if self._console.width < NARROW else (BarColumn(bar_width=20),)
        return Bars(
            TextColumn("{task.description}", markup=False),
            *bars,
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            auto_refresh=True,
        )

    def _tell_all(self) -> None:
        if self._bars is None:
            return
        left = self._total - self._before - self._done
        counts = {"running": len(self._begun), "failed": self._failed, "waiting": left - len(self._begun)}
        note = ", ".join(f"{count} {word}" for word, count in counts.items() if count > 0 and self._begun)
        note = ", ".join(filter(None, (note or ("starting" if left else ""), self._to_go(), self._best)))
        done = self._before + self._done
        text = f"{done} of {self._total} {self._unit}"
        self._bars.update(self._all, description=text, completed=done, note=note)

    def _to_go(self) -> str:
        left = self._total - self._before - self._done
        rest = left * (time.monotonic() - self._started) / max(self._done, 1)
        return f"about {duration(rest)} to go" if left and self._done else ""

    def _warn(self, text: str) -> None:
        if self._bars is None:
            warn(text)
        else:  # another console would write over the rows
            self._console.print(f"warning: {visible(text)}", style="yellow")

"""What commands print: results on stdout, everything else on stderr; plain lines where there is no terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune_kit.foreign import visible, visible_json
from finetune_kit.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def stdout() -> Console:
    """Return the console for results."""
    return literal_console(soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """Return the console for progress and warnings."""
    return literal_console(stderr=True, soft_wrap=not sys.stderr.isatty())


def literal_console(**options: Any) -> Console:
    """Return a console that takes text as it is: names in it are anybody's, so markup and controls do nothing."""
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

    class Literal(Console):
        def render_str(self, text: str, **given: Any) -> Text:
            return super().render_str(visible(text, "\n"), **given)

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):  # a `Text` comes here without `render_str`
                yield segment if segment.control else segment._replace(text=visible(segment.text, "\n"))

    return Literal(highlight=False, markup=False, emoji=False, **options)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table; the columns named in ``right`` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def warn(text: str) -> None:
    """Print one warning line on stderr."""
    from rich.text import Text

    stderr().print(Text.assemble(("warning:", "yellow"), f" {visible(text)}"))


class ConsoleProgress(Progress):
    """Bars on a terminal; without one, a plain line where a stage starts."""

    def __init__(self) -> None:
        self._console = stderr()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Show a bar for a stage of at most ``total`` steps; early stopping may end it before."""
        if not self._console.is_terminal:
            self.say(f"{title} …")
            yield lambda steps, note="": None
            return
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:9}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Bars(*columns, console=self._console, transient=False) as bars:
            bar = bars.add_task(title, total=total, note="")
            yield lambda steps, note="": bars.update(bar, advance=steps, note=note)

    def say(self, text: str) -> None:
        """Print one line; a warning stands out."""
        if text.startswith("warning: "):
            warn(text.removeprefix("warning: "))
        else:
            self._console.print(text)

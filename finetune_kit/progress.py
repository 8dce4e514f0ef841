"""What long work tells whoever waits for it. The command line draws bars; a library caller hears nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Silent progress; the base of those that show something."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Yield ``advance(steps, note)`` for a stage of ``total`` steps."""
        yield lambda steps, note="": None

    def say(self, text: str) -> None:
        """Tell one line."""


def duration(seconds: float) -> str:
    """Return seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

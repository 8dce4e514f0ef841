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

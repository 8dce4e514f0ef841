"""SIGINT (Ctrl-C) and SIGTERM while something must not stop half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the work.

    Args:
        number: Which one.
    """

    last: ClassVar[int] = signal.SIGINT
    """Which one ended the work last; typer hands on that something did, but not what."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        Interrupted.last = number


@contextmanager
def deadly(number: int) -> Iterator[None]:
    """Run a block that a signal ends with the process, at once: one that may wait outside of Python."""
    if threading.current_thread() is not threading.main_thread() or (before := signal.getsignal(number)) is None:
        yield
        return
    signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


class Shield:
    """While it is entered (``with``), a signal waits for the end of what `whole` holds; elsewhere it acts at once.

    It acts as it would have done: by the handler that was there, or by raising `Interrupted`. One that was ignored
    stays ignored. Python tells signals to the main thread alone; in others there is no shield, and no need of one.

    Args:
        is_shared: Among processes that work together a signal waits for `act`, which all call at the same point: none
            may stop while others wait for it.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        self.is_torn = False
        """Whether what `whole` held last was left half-way: by an error, or by a second signal."""
        self._is_up = False
        self._waiting: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give them back; one that came within a block that failed has its turn now."""
        for number, old in self._before.items():
            signal.signal(number, old)
        if self._waiting and not isinstance(error, KeyboardInterrupt):
            self._act(self._waiting.pop())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Run a block to its end, whatever signal comes; a second one breaks it off."""
        self._is_up = self.is_torn = True
        try:
            yield
            self.is_torn = False
        finally:
            self._is_up = False
        if self._waiting and not self._is_shared:
            self.act(self._waiting[0])

    @property
    def waiting(self) -> int:
        """The signal that waits, or 0."""
        return self._waiting[0] if self._waiting else 0

    def act(self, number: int) -> None:
        """Do now what a signal is for, whoever received it."""
        self._waiting.clear()
        self._act(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if (self._is_up or self._is_shared) and not self._waiting:
            self._waiting.append(number)
        else:
            self.is_torn = self.is_torn or self._is_shared  # the others don't know of it
            self.act(number)

    def _act(self, number: int) -> None:
        old = self._before.get(number, signal.SIG_DFL)
        if callable(old) and old is not signal.default_int_handler:
            old(number, None)
        else:
            raise Interrupted(number)

"""What long work tells while it goes on, on stderr: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_kit.cli.output import stderr

PATIENCE = 2.0
"""Seconds before anything is said of steps: short work is silent."""


class Narration(logging.Handler):
    """Shows log records: steps (info) once it lasts, warnings always."""

    def __init__(self) -> None:
        super().__init__()
        self._console = stderr()
        self._status = self._console.status("")
        self._step = ""
        self._lasts = False
        self._timer = threading.Timer(PATIENCE, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.levelno >= logging.WARNING:
            self._console.print(f"warning: {record.getMessage()}")
            return
        self._step = record.getMessage()
        if self._lasts:
            self._show()

    def close(self) -> None:
        """End the moving line."""
        self._timer.cancel()
        self._status.stop()
        super().close()

    def _begin(self) -> None:
        self._lasts = True
        if self._console.is_terminal:
            self._status.start()
        if self._step:
            self._show()

    def _show(self) -> None:
        if self._console.is_terminal:
            self._status.update(self._step)
        else:
            self._console.print(f"{self._step} …")


@contextmanager
def narrated(logger_name: str) -> Iterator[None]:
    """Show on stderr the steps and warnings that a logger gets while the block runs."""
    logger, narration = logging.getLogger(logger_name), Narration()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(narration)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(narration)
        logger.setLevel(level)
        logger.propagate = propagate
        narration.close()

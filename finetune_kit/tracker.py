"""Trackers: where a run's numbers go while it runs. Plugins add their own through ``ftkit_trackers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Tracker:
    """Receives a run's numbers as they come; the base does nothing with them.

    For implementers: derive and override what you need. An exception raised here ends the run.

    Args:
        folder: The run folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, config: Mapping[str, Any]) -> None:
        """Called once, before training, with everything resolved."""

    def go_on(self, stage: str, history: Sequence[Mapping[str, float]]) -> None:
        """Called before the first epoch of a stage, with the records of those that are done: none in a new run.

        A run that was killed may have told `record` of more epochs than it goes on after; they will be told again.
        """

    def record(self, stage: str, values: Mapping[str, float]) -> None:
        """Called after each epoch of a stage (``"pretrain"`` or ``"finetune"``); ``values["epoch"]`` counts from 1."""

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Called at the end, with what goes into ``metrics.json``, before that is written."""

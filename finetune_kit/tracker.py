"""Trackers: where a run's numbers go while it runs. Plugins add their own through ``ftkit_trackers``."""

from __future__ import annotations

from collections.abc import Mapping
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

    def record(self, stage: str, values: Mapping[str, float]) -> None:
        """Called after each epoch of a stage (``"pretrain"`` or ``"finetune"``); ``values["epoch"]`` counts from 1."""

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Called once, at the end, with what goes into ``metrics.json``."""

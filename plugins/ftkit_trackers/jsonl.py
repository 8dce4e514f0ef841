"""A log of JSON lines in the run folder: one per epoch, readable while the run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from finetune_kit.tracker import Tracker


class JsonLines(Tracker):
    """Appends to ``log.jsonl``: what happened, when (seconds since 1970), and the numbers."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Write what is run."""
        self._write("start", {"run": config["run"]})

    def record(self, stage: str, values: Mapping[str, float]) -> None:
        """Write one epoch."""
        self._write(stage, values)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the result."""
        self._write("finish", metrics)

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=False) + "\n")

"""A log of JSON lines in the run folder: one per epoch, readable while the run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_kit.files import storing, write_text
from finetune_kit.tracker import Tracker


class JsonLines(Tracker):
    """Appends to ``log.jsonl``: what happened, when (seconds since 1970), and the numbers."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Write what is run, on a line of its own: a kill may have cut the last one short."""
        self._rewrite(list(self._lines()))
        self._write("start", {"run": config["run"]})

    def go_on(self, stage: str, history: Sequence[Mapping[str, float]]) -> None:
        """Leave each epoch that is done in the log once: a kill may have come between log and state."""
        told = list(self._lines())
        starts = [line for line in told if line["event"] == "start"]
        times = {line.get("epoch"): line["time"] for line in told if line["event"] == stage}
        kept = [_event(stage, record, times.get(record["epoch"])) for record in history]
        self._rewrite(sorted(starts + kept, key=lambda line: line["time"]) if history else starts[-1:])

    def record(self, stage: str, values: Mapping[str, float]) -> None:
        """Write one epoch."""
        self._write(stage, values)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the result."""
        self._write("finish", metrics)

    @property
    def _path(self) -> Path:
        return self.folder / "log.jsonl"

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield what lines say, but for those that were cut short."""
        if not self._path.exists():
            return
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "event" in line and isinstance(line.get("time"), int | float):
                yield line

    def _rewrite(self, lines: Sequence[Mapping[str, Any]]) -> None:
        write_text(self._path, "".join(map(_text, lines)))

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        with storing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_text(_event(event, values)))


def _event(event: str, values: Mapping[str, Any], when: float | None = None) -> dict[str, Any]:
    return {"event": event, "time": round(time.time(), 3) if when is None else when, **values}


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"

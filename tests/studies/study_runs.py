"""What the tests of studies share: a tiny search, and a board that keeps what it is told."""

import json
from pathlib import Path

from finetune_kit.board import Board
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.named import resolve_dataset
from finetune_kit.studies.plan import Sweep, SweepOptions
from finetune_kit.studies.sweep import Search

TINY = {
    "data": {"users": 100, "max_length": 10},
    "backbone": {"dim": 8, "num_blocks": 1},
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 2},
}
RATES = {"finetune.learning_rate": "1e-4:1e-1:log"}


def tiny(folder: Path, sections=None, **options) -> Search:
    """Return a search of a learning rate; five trials where nothing else is given."""
    shared = {**TINY, "run": {"strategy": "finetune-all"}, **(sections or {})}
    sweep = Sweep(shared, SweepOptions(**{"search": RATES, "trials": 5, **options}))
    config = sweep.shared
    dataset = Dataset.open(resolve_dataset(config.run.data, dict(config.reader)))
    return Search(sweep, dataset, folder, board=Told())


def facts(found) -> list:
    """Return what trials came to, without the times."""
    return [
        (row.place, row.state, dict(row.values), row.value, row.about.get("best_epoch"), row.about.get("epochs"))
        for row in found.rows
    ]


def metrics(folder: Path) -> dict:
    """Return ``metrics.json`` without the times."""
    values = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in values.items() if name not in ("seconds", "instances_per_second")}


class Told(Board):
    """Keeps what ended, by number; on the end of ``interrupt_at``, the user presses Control-C."""

    def __init__(self, interrupt_at: int | None = None):
        self.ended: dict[int, str] = {}
        self.total = self.interrupt_at = interrupt_at
        self.steps = self.started = 0

    def begin(self, total, finished=0):
        self.total = total - finished

    def start(self, number, title):
        self.started += 1

    def step(self, number, step):
        self.steps += 1

    def end(self, number, title, fault="", note=""):
        self.ended[number] = fault or note
        if number == self.interrupt_at:
            raise KeyboardInterrupt

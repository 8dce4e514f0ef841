"""The log that a run writes as it goes, and what becomes of it when the run is killed."""

import json
from pathlib import Path

import pytest

from ftkit_trackers.jsonl import JsonLines

HISTORY = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.4}]


def events(folder: Path) -> list[tuple[str, int | None]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["event"], line.get("epoch")) for line in lines]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A log of two epochs, and one that no state knows of, on a line that was cut short."""
    log = JsonLines(tmp_path)
    log.start({"run": {}})
    log.go_on("finetune", [])
    for record in HISTORY:
        log.record("finetune", record)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "finetune", "epo')
    return tmp_path


@pytest.mark.parametrize("num_saved", [0, 1, 2])
def test_going_on_tells_each_epoch_once_whatever_was_told_before(killed: Path, num_saved: int) -> None:
    log = JsonLines(killed)
    log.start({"run": {}})
    log.go_on("finetune", HISTORY[:num_saved])
    for record in HISTORY[num_saved:]:
        log.record("finetune", record)
    log.finish({"epochs": 2})
    started = [("start", None)]
    epochs = [("finetune", 1), ("finetune", 2), ("finish", None)]
    assert sorted(events(killed), key=str) == sorted([*(started * (2 if num_saved else 1)), *epochs], key=str)
    assert [event for event in events(killed) if event[0] != "start"] == epochs


def test_an_epoch_that_was_saved_but_not_told_is_told_from_the_state(killed: Path) -> None:
    lines = (killed / "log.jsonl").read_text().splitlines()
    (killed / "log.jsonl").write_text(lines[0] + "\n" + lines[1].replace("0.5", "0.1") + "\n\x00\nnothing\n[]\n")
    log = JsonLines(killed)
    log.start({"run": {}})
    log.go_on("finetune", HISTORY)
    lines = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    assert [line["train_loss"] for line in lines if line["event"] == "finetune"] == [0.5, 0.4]

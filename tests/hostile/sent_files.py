"""Files that somebody sent, and what a command says of them."""

import json
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Sent(NamedTuple):
    """What somebody sent: a dataset folder, a pre-trained backbone and a run."""

    dataset: Path
    base: Path
    run: Path


def change_json(path: Path, change) -> None:
    """Let a function change what a JSON file says."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def assert_refused(done: Done, *words: str) -> None:
    """Check that a command said in one line what is wrong, among it some words."""
    assert done.code == 2, done
    lines = [line for line in done.err.splitlines() if line.startswith("ftkit: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in lines[0]

"""What the tests of commands share: a function that runs one command line."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from finetune_kit.cli import main as module


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ftkit(monkeypatch, capsys, tmp_path, cache):
    """Return a function that runs one command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(cache))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["ftkit", *arguments])
        with pytest.raises(SystemExit) as caught:
            module.main()
        return Done(caught.value.code, *capsys.readouterr())

    return run

"""docs/studies.md: what it shows works."""

import pytest

from documents import blocks, check_console, run_command
from finetune_kit.config import read_toml
from finetune_kit.options import resolve
from finetune_kit.studies import table
from finetune_kit.studies.plan import SweepOptions
from finetune_kit.studies.study import WARM_UP

pytest.importorskip("optuna")
PAGE = "docs/studies.md"


def test_the_example_works_as_written(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    ((_, block),) = blocks(PAGE, "console")
    check_console(block, lambda command: run_command(command, monkeypatch, capsys))
    left = {path.name for path in (tmp_path / "runs" / "search").iterdir()}
    assert left == {"best.toml", table.FILE, "sweep.json", "trials", "journal.log"}


def test_the_file_is_one_that_sweep_takes(tmp_path):
    ((_, block),) = blocks(PAGE, "toml")
    (tmp_path / "search.toml").write_text(block)
    options = resolve(SweepOptions, read_toml(tmp_path / "search.toml")["sweep"], "sweep")
    assert (options.trials, options.pruner, len(options.search)) == (30, "median", 2)
    assert WARM_UP == 4, "the page says when median begins"

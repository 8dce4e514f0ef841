"""What docs/stability.md says is there, and nothing public is missing from it."""

import importlib
import json
import re

import pytest
import typer

import finetune_kit
import finetune_kit.testing
from documents import ROOT, TINY, run_command
from finetune_kit import hookspecs
from finetune_kit.cli import main
from finetune_kit.plugins import GROUP

TEXT = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")


def names_after(words: str) -> list[str]:
    """Return the quoted names from some words on, to the end of the paragraph."""
    return re.findall(r"`([\w@]+)`", TEXT.split(words)[1].split("\n\n")[0].split(". ")[0])


def rows(heading: str) -> list[tuple[str, list[str]]]:
    """Return the first cell and the names in the second of each row of the table below a heading."""
    lines = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    cells = [re.findall(r"`([^`]+)`", line) for line in lines if line.startswith("| `")]
    return [(first, others) for first, *others in cells]


@pytest.mark.parametrize("module", [finetune_kit, finetune_kit.testing])
def test_the_public_names_of_a_module_are_those_of_the_page(module):
    extra = " (extra `testing`)" if module is finetune_kit.testing else ""
    assert names_after(f"From `{module.__name__}`{extra}:\n\n") == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_what_plugins_need_beside_them_is_there():
    for module, names in rows("Python"):
        assert all(hasattr(importlib.import_module(module), name) for name in names), module


def test_the_hooks_are_all_on_the_page():
    assert f"`{GROUP}`" in TEXT
    hooks = {name for name in vars(hookspecs) if name.startswith("ftkit_")}
    assert set(re.findall(r"`(ftkit_\w+)`", TEXT.split("## Plugins")[1].split("\n## ")[0])) == hooks


def test_every_command_has_the_options_on_the_page():
    top = typer.main.get_command(main.app)
    for line, options in rows("Command line"):
        command = top
        for word in line.split()[1:]:
            command = command.commands[word]
        known = {name for parameter in command.params for name in parameter.opts}
        assert set(options) <= known, line


def test_metrics_have_the_keys_on_the_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    done = json.loads(
        run_command("ftkit run --strategy uaf-hard --epochs 1 --output out --json", monkeypatch, capsys, TINY)
    )
    assert set(names_after("Keys of `metrics.json`: ")) <= done.keys()
    assert set(done["test"]) == {"full", "sampled"}
    assert {name.split("@")[0] for name in done["test"]["full"]} == {"hr", "mrr", "ndcg"}
    assert [
        path for path in (tmp_path / "out").iterdir() if f"`{path.name}`" not in TEXT and path.suffix == ".parquet"
    ] == []

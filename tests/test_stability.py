"""What docs/stability.md says is there, and nothing that users are shown is missing from it."""

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import finetune_kit
import finetune_kit.testing
from documents import ROOT, TINY, run_command
from finetune_kit import hookspecs
from finetune_kit.cli import main
from finetune_kit.cli.scaffold import TEMPLATES
from finetune_kit.plugins import GROUP

TEXT = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")


UNCOVERED = {"--version", "--traceback"}
"""Options that are for people at a terminal alone."""
EXAMPLES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *TEMPLATES.rglob("*.py"), *TEMPLATES.rglob("*.md")]
"""What readers copy from."""


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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_readers_are_shown_to_import_is_on_the_page(path):
    listed = {module: set(names) for module, names in rows("Python")}
    listed |= {module.__name__: set(module.__all__) for module in (finetune_kit, finetune_kit.testing)}
    for module, names in re.findall(
        r"^\s*from (finetune_kit[\w.]*) import (\([^)]*\)|.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE
    ):
        unlisted = set(re.findall(r"\w+", names)) - listed.get(module, set())
        assert not unlisted, f"docs/stability.md does not list {unlisted} of {module}"


def test_the_hooks_are_all_on_the_page():
    assert f"`{GROUP}`" in TEXT
    hooks = {name for name in vars(hookspecs) if name.startswith("ftkit_")}
    assert set(re.findall(r"`(ftkit_\w+)`", TEXT.split("## Plugins")[1].split("\n## ")[0])) == hooks


def commands(command: Any, *words: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each command and its long options, without ``--help``."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *words, name)
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    yield " ".join(words), options - {"--help"}


def test_every_command_has_the_options_on_the_page_and_no_others():
    lines = [line for line in TEXT.split("\n## Command line\n")[1].split("\n## ")[0].splitlines() if line[:3] == "| `"]
    told = {}
    for line in lines:
        _, names, options, _ = line.split("|")
        told |= {name: set(re.findall(r"`(--[^`]+)`", options)) for name in re.findall(r"`([^`]+)`", names)}
    there = {line: options for line, options in commands(typer.main.get_command(main.app), "ftkit") if options}
    assert there["ftkit"] >= UNCOVERED
    there["ftkit"] -= UNCOVERED
    assert told == there


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

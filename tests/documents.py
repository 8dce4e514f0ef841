"""What the tests of README.md and docs/ share: take the blocks of a document out, and run them."""

import doctest
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_kit.cli import main as command_line

ROOT = Path(__file__).parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
TINY = [
    *("--set", "data.users=100"),
    *("--set", "data.max_length=10"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=1"),
    *("--set", "pretrain.epochs=1"),
]


def blocks(document: str, *languages: str) -> list[tuple[str, str]]:
    """Return (language, text) of the fenced blocks of a document below the root."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if language in languages]


def commands(block: str) -> list[tuple[str, str]]:
    """Return (command, output shown) of a console block; a backslash joins lines."""
    shown: list[tuple[str, str]] = []
    for line in block.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith("$ "):
            shown.append((line[2:].strip(), ""))
        else:
            shown[-1] = (shown[-1][0], shown[-1][1] + line)
    return shown


def run_command(command: str, monkeypatch, capsys, extra: list[str] | None = None) -> str:
    """Run one ``ftkit …`` line in this process; return its stdout, or its stderr where it fails."""
    name, *arguments = shlex.split(command)
    assert name == "ftkit", f"only ftkit lines can be tested: {command}"
    monkeypatch.setattr(sys, "argv", [name, *arguments, *(extra or [])])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    out, err = capsys.readouterr()
    return err if caught.value.code else out


def check_console(block: str, run: Callable[[str], str]) -> None:
    """Run a console block's commands, and compare where it shows output (``...`` stands for anything)."""
    for command, shown in commands(block):
        printed = run(command)
        if shown:
            assert doctest.OutputChecker().check_output(shown, printed, FLAGS), f"$ {command}\n{printed}"
        else:
            assert not printed.startswith("ftkit: "), f"$ {command}\n{printed}"

"""Small runs for tests of what is done with one."""

import sys
from pathlib import Path

import pytest

from finetune_kit.cli import main as module

TINY = [
    *("--strategy", "finetune-zero"),
    *("--data", "made"),
    *("--epochs", "1"),
    *("--max-length", "8"),
    *("--set", "backbone.dim=8"),
    *("--set", "backbone.num_blocks=1"),
]


def make_runs(folder: Path, **arguments: list[str]) -> Path:
    """Make runs of some names, with further arguments each, and their dataset ``made`` in a folder; return it."""
    commands = [["data", "prepare", "synthetic", "--users", "60", "--output", "made"]]
    commands += [["run", *TINY, "--output", name, *more] for name, more in arguments.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FTKIT_CACHE", str(folder / "cache"))
        for command in commands:
            patch.setattr(sys, "argv", ["ftkit", *command])
            with pytest.raises(SystemExit) as caught:
                module.main()
            assert caught.value.code == 0
    return folder

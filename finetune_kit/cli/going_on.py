"""The command that goes on with one that was interrupted."""

from __future__ import annotations

import shlex
import sys

GOING_ON = ("run", "pretrain", "finetune", "compare", "sweep")
"""Commands that take --resume."""


def command_to_go_on() -> str:
    """Return the command that goes on with the interrupted one; nothing where there is none."""
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    if next((word for word in words if not word.startswith("-")), "") not in GOING_ON:
        return ""
    return shlex.join(["ftkit", *words, *(["--resume"] if "--resume" not in words else [])])

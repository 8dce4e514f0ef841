"""Which commands are at work on a folder, on this machine or another that shares it."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_kit.files import is_alive

FOLDER = ".at-work"
"""The folder, in the one that is worked on, in which each command has a file while it runs."""
EVERY = 10.0
"""Seconds after which a command shows that it is still there."""
GONE_AFTER = 90.0
"""Seconds after which one that has not shown it is taken for dead."""


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """Show others that this process is at work on a folder; yield the name under which they see it."""
    name = f"{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    file, over = sign_of(folder, name), threading.Event()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    watch = threading.Thread(target=_show, args=(file, over), daemon=True)
    watch.start()
    try:
        yield name
    finally:
        over.set()
        watch.join()
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are at work
            file.parent.rmdir()


def sign_of(folder: Path, name: str) -> Path:
    """Return the file that shows that a command is at work on a folder."""
    return folder / FOLDER / name


def others_at_work(folder: Path, own: str) -> list[str]:
    """Return the names of the other commands that are at work on a folder; files of dead ones are taken away.

    Args:
        folder: The folder.
        own: The name that `at_work` gave to this one.
    """
    mine, found = sign_of(folder, own), []
    mine.touch()
    now = mine.stat().st_mtime  # by the clock of the disk, as theirs are
    for file in sorted((folder / FOLDER).glob("*.*.*")):
        host, process, _ = file.name.rsplit(".", 2)
        with contextlib.suppress(FileNotFoundError):
            is_here = host == _machine()
            is_dead = is_here and process.isdigit() and not is_alive(int(process))
            if is_dead or now - file.stat().st_mtime > GONE_AFTER:
                file.unlink()
            elif file.name != own:
                found.append(file.name)
    return found


def in_words(name: str) -> str:
    """Return a command's name for a message."""
    host, process = name.rsplit(".", 2)[:2]
    return f"process {process} on {host}"


def _machine() -> str:
    return platform.node().replace("/", "-") or "machine"


def _show(file: Path, over: threading.Event) -> None:
    while not over.wait(EVERY):
        with contextlib.suppress(OSError):
            file.touch()

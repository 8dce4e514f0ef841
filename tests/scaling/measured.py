"""Run a command and tell how long it took and how much memory it had, all its processes together."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Measured:
    """What a command did.

    Args:
        seconds: How long it took.
        peak: MiB that its processes had at once, at most; pages of files that they mapped are in it.
        output: What it printed, on stdout and stderr.
        code: Its exit code.
    """

    seconds: float
    peak: float
    output: str
    code: int


def measure(command: Sequence[str | Path], log: Path, limit: int | None = None) -> Measured:
    """Run a command to its end.

    Args:
        command: The words.
        log: File for what it prints.
        limit: MiB of private memory that each of its processes may ask for (``RLIMIT_DATA``); None sets no limit.
    """

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit * 2**20, limit * 2**20))

    begin, peak = time.monotonic(), 0.0
    with log.open("wb") as file:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, preexec_fn=bound)
        while process.poll() is None:
            peak = max(peak, _mebibytes(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return Measured(time.monotonic() - begin, peak, log.read_text(errors="replace"), process.returncode)


def _mebibytes(pid: int) -> float:
    """Return the memory of a process and all below it: of one alone its high-water mark, which no look misses."""
    processes = _tree(pid)
    if len(processes) == 1:
        return _told(pid, "VmHWM")
    return sum(_told(one, "VmRSS") for one in processes)


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _told(pid: int, what: str) -> float:
    """Return what the kernel tells of a process, MiB; 0 of one that has ended."""
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 2**10 if found else 0.0

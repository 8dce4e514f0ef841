"""Peak memory: each variant in a process of its own, read where it is highest."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path


def peak_mebibytes() -> float:
    """Return the most memory that this process has had.

    On Linux by its own high-water mark: what `getrusage` tells of a process counts that of the one it was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None, "/proc/self/status tells no high-water mark"
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def peak_of(row: str, who: str, size: str) -> float:
    """Return the peak memory, mebibytes, of two steps of a row, ``who`` being ``ours`` or ``straight``."""
    script = Path(__file__).with_name("speed.py")
    command = [sys.executable, str(script), "--memory-of", who, "--only", row, "--size", size]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

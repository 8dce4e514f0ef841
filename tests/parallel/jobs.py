"""Jobs of several processes for tests, started as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun tells the processes of a job on one machine."""
    told = {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "GROUP_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_job(script: Path, *arguments: str, size: int = 2) -> None:
    """Run a script in several processes, to its end."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    told = [process.communicate(timeout=120)[0] for process in started]
    for process, text in zip(started, told, strict=True):
        assert process.returncode == 0, text[-4000:]

"""Spoiled inputs given to `ftkit` itself, in a process of its own: what is printed, and the exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from event_logs import write_logs
from histories import write_histories
from mutations import TEXT
from readers import Reader
from settings import write_config

from finetune_kit.errors import FinetuneKitError

SECONDS = 120
FTKIT = [sys.executable, "-c", "from finetune_kit.cli.main import main; main()"]


def process_readers(folder: Path) -> list[Reader]:
    """Return commands under test; the run in ``folder`` must have been made by `folders.folder_readers`."""
    run = str(folder / "whole" / "run")
    base = next((folder / "whole" / "bases").iterdir())
    recommend = ["recommend", run, "--base", str(base), "--input", "in.jsonl", "--output", "out.csv", "--device", "cpu"]
    prepare = ["data", "prepare", "events", "source.csv", "--target", "target.csv", "--output", "made"]
    plan = ["run", "--config", "config.toml", "--dry-run", "--device", "cpu"]
    return [
        Reader("ftkit recommend", write_histories("in.jsonl"), _ftkit(recommend), TEXT),
        Reader("ftkit data prepare", write_logs(".csv"), _ftkit(prepare), TEXT),
        Reader("ftkit run --config", write_config, _ftkit(plan), TEXT),
    ]


def _ftkit(arguments: list[str]) -> Callable[[Path, Random], None]:
    def run(place: Path, random: Random) -> None:
        environment = {**os.environ, "FTKIT_CACHE": str(place.parent / "cache")}
        done = subprocess.run(
            [*FTKIT, *arguments], cwd=place, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
        lines = done.stderr.decode(errors="replace").splitlines()
        assert done.returncode in (0, 2), f"exit code {done.returncode}: {lines[-30:]}"
        assert not any(line.startswith("Traceback") for line in lines), lines[-30:]
        if done.returncode == 2:
            assert lines[-1].startswith("ftkit: "), lines[-30:]
            raise FinetuneKitError(lines[-1])

    return run

"""What a run was made with: versions, machine, and the state of the git checkout it was started in."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from finetune_kit import __version__

PACKAGES = ("finetune-kit", "torch", "lightning-fabric", "numpy", "duckdb", "pydantic", "safetensors", "scipy")


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> dict[str, str | bool]:
    """Return commit and cleanliness of the git checkout around the working folder; empty outside of one."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "is_dirty": bool(_git("status", "--porcelain"))} if commit else {}


def written_by(writer: str | None) -> str:
    """Return who wrote a file that this version can't use, and what to do: the end of an error's line."""
    name = f"ftkit {writer}" if writer else "an ftkit that did not say its version"
    return f"it was written by {name}, this is {__version__}: use the version that wrote it, or a later one"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

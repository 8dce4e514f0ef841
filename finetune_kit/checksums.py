"""``checksums.json``: by what a finished run's files are known to be those that it wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_kit.data.remote import File
from finetune_kit.errors import CheckpointError, one_line
from finetune_kit.files import write_json
from finetune_kit.foreign import read_json

FILE = "checksums.json"
COVERED = ("config.toml", "*.parquet", "model.json", "model.safetensors")
"""Files of a run folder whose checksums are kept. What trackers write is theirs, and a log may go on growing."""


def write_checksums(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the checksums of a folder's files, and of some that will be written next.

    Args:
        folder: A run, or a pre-trained backbone.
        texts: What the files to come will hold, by name.
    """
    found = {path.name: file_hash(path) for pattern in COVERED for path in sorted(folder.glob(pattern))}
    found |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_json(folder / FILE, {"sha256": found})


def refuse_changed(folder: Path, advice: str) -> None:
    """Raise if a file of a finished run is gone, or another one than was written.

    Folders of versions that kept no checksums are taken as they are.

    Args:
        folder: A run, or a pre-trained backbone.
        advice: What to do about it.

    Raises:
        CheckpointError: Naming the first such file.
    """
    path = folder / FILE
    if not path.exists():
        return
    for name, expected in _read(path, advice).items():
        file = folder / Path(name).name  # never outside of the folder
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; {advice}")
        if file_hash(file) != expected:
            raise CheckpointError(f"{file} was changed or damaged: its checksum is not that in {FILE}; {advice}")


def _read(path: Path, advice: str) -> dict[str, Any]:
    try:
        found = read_json(path)["sha256"]
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error, with_type=True)}; {advice}") from error


def file_hash(path: File) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()

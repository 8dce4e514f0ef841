"""A dataset folder as a whole: it appears complete or not at all, and its manifest says what lies in it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_kit.environment import written_by
from finetune_kit.errors import DataError, one_line
from finetune_kit.foreign import confined, read_json, refuse_name

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
KEYS = ("name", "counts", "options", "inputs", "files", "vocabularies", "raw", "warnings")
"""What a manifest says besides its format version and which version wrote it."""
PARTS = {
    "counts": ("users", "source_items", "target_items", "source_events", "target_events"),
    "vocabularies": ("source", "target"),
    "files": ("source.parquet", "target.parquet", "users.parquet", "source_items.parquet", "target_items.parquet"),
}
"""What is read below some of the keys."""


CHECKED_AGAIN = 1 << 24
"""Bytes up to which a file's checksum is computed whenever the dataset is opened: it takes a hundredth of a second."""


def is_dataset(path: Path) -> bool:
    """Return whether a folder holds a dataset manifest, whatever its state."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what ``dataset.json`` says, after checking that the files it lists are there and whole.

    A file is whole when it has the size recorded when it was written and, up to `CHECKED_AGAIN` bytes, the checksum.

    Raises:
        DataError: For no folder, no manifest, another format version, or a file missing or damaged.
    """
    if not path.is_dir():
        raise DataError(f"no dataset folder at {path}; make one with `ftkit data prepare`")
    if not is_dataset(path):
        raise DataError(f"{path} is no dataset: it has no {MANIFEST}; make one with `ftkit data prepare`")
    try:
        manifest = read_json(path / MANIFEST)
        version = manifest["format_version"]
        lacking = _lacking(manifest) or _misfits(manifest) if version == FORMAT_VERSION else []
        if version == FORMAT_VERSION and not lacking:
            _refuse_escapes(path, manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / MANIFEST} is damaged ({one_line(error)}); prepare the dataset again") from error
    if lacking:
        raise DataError(
            f"{path / MANIFEST} is damaged (no {', '.join(lacking)} as it should be); prepare the dataset again"
        )
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has dataset format {version!r}, this ftkit reads {FORMAT_VERSION}; "
            f"{written_by(manifest.get('written_by'))}"
        )
    _check_files(path, manifest)
    return manifest


def _lacking(manifest: dict[str, Any]) -> list[str]:
    """Return what a manifest of this version should say and does not."""
    lacking = [key for key in KEYS if key not in manifest]
    within = {key: [part for part in parts if part not in manifest.get(key, parts)] for key, parts in PARTS.items()}
    cut = [name for name, told in manifest.get("files", {}).items() if not {"bytes", "sha256"} <= told.keys()]
    return lacking + [f"{key}.{part}" for key, parts in {**within, "whole files": cut}.items() for part in parts]


def _refuse_escapes(path: Path, manifest: dict[str, Any]) -> None:
    """Raise ``ValueError`` for names that would lead out of the folder, or out of one named after the dataset."""
    refuse_name(manifest["name"])
    for name in manifest["files"]:
        refuse_name(name)
        confined(path, name)


def _misfits(manifest: dict[str, Any]) -> list[str]:
    """Return what a manifest says that is of another kind than what is read of it."""
    kinds = {"name": str, "counts": dict, "options": dict, "inputs": dict, "files": dict, "raw": dict, "warnings": list}
    misfits = [key for key, kind in kinds.items() if not isinstance(manifest[key], kind)]
    if misfits:
        return misfits
    numbers = {f"counts.{name}": count for name, count in manifest["counts"].items()}
    numbers |= {f"files.{name}.bytes": told["bytes"] for name, told in manifest["files"].items()}
    texts = {f"files.{name}.sha256": told["sha256"] for name, told in manifest["files"].items()}
    texts |= {f"vocabularies.{name}": text for name, text in manifest["vocabularies"].items()}
    misfits = [name for name, number in numbers.items() if type(number) is not int or not 0 <= number < 2**63]
    misfits += [name for name, text in texts.items() if not isinstance(text, str)]
    return misfits + [
        f"raw.{name}" for name in ("left_out", "beyond_max_target", "times") if name not in manifest["raw"]
    ]


def _check_files(path: Path, manifest: dict[str, Any]) -> None:
    for name, recorded in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise DataError(f"{file} is missing; prepare the dataset again")
        if file.stat().st_size != recorded["bytes"]:
            raise DataError(
                f"{file} is damaged: it has {file.stat().st_size:,} bytes, "
                f"{recorded['bytes']:,} were written; prepare the dataset again"
            )
        if recorded["bytes"] <= CHECKED_AGAIN and describe_file(file)["sha256"] != recorded["sha256"]:
            raise DataError(f"{file} is damaged: its checksum is not the one recorded; prepare the dataset again")


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its SHA-256, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


@contextmanager
def new_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder of that name in a temporary sibling; it moves to ``output`` when all ends well.

    Args:
        output: Where the folder shall appear; missing parents are made.
        overwrite: Whether a dataset that is there already is replaced, after the new one is complete.

    Raises:
        DataError: When something other than an empty folder (or a dataset to overwrite) is at ``output``.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100  (resolve() would follow a link)
    _refuse_taken(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        yield folder
        _refuse_taken(output, overwrite)
        if is_dataset(output):
            output.rename(Path(temporary) / "replaced")
        folder.rename(output)  # an empty folder may stand there: rename takes its place


def _refuse_taken(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output.is_dir() and is_dataset(output)):
        raise DataError(f"{output} exists and is no dataset; choose another output")
    if not overwrite:
        raise DataError(f"{output} is a dataset already; choose another output or replace it with --overwrite")

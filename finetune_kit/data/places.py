"""From what a user writes to the files it stands for: a file, a folder of parts, a pattern, or an fsspec address.

The way in, for all who read tables: `find_place`, then per file `finetune_kit.data.tables.column_names` and
`finetune_kit.data.database.parquet_scan`, or all at once `finetune_kit.data.tables.load_files`. Files are sorted by
their paths, part by part, so that a copy elsewhere is read in the same order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote

from pydantic import PlainSerializer

from finetune_kit.data.remote import File, RemoteFile, find_remote, is_address, without_secrets
from finetune_kit.errors import DataError, one_line

SUFFIXES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
PlaceText = Annotated[str, PlainSerializer(without_secrets)]
"""An option's text that `find_place` takes; wherever options are recorded, it stands without secrets."""
NOWHERE = "__HIVE_DEFAULT_PARTITION__"
"""What the name of a folder says for null."""


@dataclass(frozen=True)
class Place:
    """Files that hold one table together.

    Args:
        address: What the user wrote, without secrets.
        files: The files, sorted; at least one.
        root: The folder whose parts they are; None for a file that was named itself.
    """

    address: str
    files: tuple[File, ...]
    root: str | None = None

    def partition(self, file: File) -> dict[str, str | None]:
        """Return what the folders between the root and a file say: ``day=2026-01-01/…`` gives ``day``."""
        if self.root is None:
            return {}
        return dict(_key_value(part) for part in _relative(file, self.root).parts[:-1] if "=" in part)


def find_place(text: str, what: str, suffixes: Iterable[str] = SUFFIXES) -> Place:
    """Return the files that a text stands for.

    Args:
        text: A file, whatever its name; a folder, of which all files below it are taken whose names end in one of the
            suffixes; or a pattern (``*``, ``?``, ``[…]``, ``**``), of which all files and folders that match. Each may
            be an fsspec address. What begins with a dot or an underscore is left out, as those who write tables in
            parts expect.
        what: What it is, for the error: ``"source"``.
        suffixes: How names of tables end.

    Raises:
        DataError: When there is none, or access fails.
        OptionError: For an address whose protocol is unknown, or whose library is not installed.
    """
    suffixes = tuple(suffixes)
    if is_address(text) and not re.match(r"(file|local)://", text):
        files, root, is_one = find_remote(text, what)
        place = Place(without_secrets(text), tuple(files), None if is_one else root)
    else:
        place = _find_local(text, what, suffixes)
    if place.root is None:
        return place
    last = place.address.rpartition("/")[2]
    named = last if re.search(r"[*?\[]", last) else ""  # what the pattern names itself must be a table
    kept = [file for file in place.files if _is_table(_relative(file, place.root), suffixes, named)]
    if not kept:
        there = f"none of its {len(place.files):,} files is a table" if place.files else "no such file or folder"
        raise DataError(f"{what} {place.address!r}: {there}, and no file matches it as a pattern")
    return Place(place.address, tuple(sorted(kept, key=_sorted_by)), place.root)


def find_files(text: str, what: str) -> list[File]:
    """Return the files of `find_place` alone."""
    return list(find_place(text, what).files)


def _find_local(text: str, what: str, suffixes: tuple[str, ...]) -> Place:
    try:
        path = Path(_strip(text) if is_address(text) else text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise DataError(f"{what} {text!r}: {one_line(error)}") from None
    if path.is_file():
        return Place(str(path), (path,))
    if path.is_dir():
        return Place(str(path), tuple(_below(path)), str(path))
    return Place(str(path), tuple(files_of_pattern(path)), _before_pattern(path))


def _strip(address: str) -> str:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem._strip_protocol(address)


def _below(folder: Path) -> Iterable[Path]:
    """Yield the files below a folder; links are followed, but into each folder once."""
    seen = {folder.resolve()}
    for here, folders, names in os.walk(folder, followlinks=True):
        inside = {name: (Path(here) / name).resolve() for name in sorted(folders)}
        folders[:] = [name for name, real in inside.items() if real not in seen]
        seen.update(inside.values())
        yield from (path for name in names if (path := Path(here) / name).is_file())


def files_of_pattern(pattern: Path) -> list[Path]:
    """Return the files whose paths match a pattern, and those below folders that do; none where it is no pattern."""
    anchor = Path(pattern.anchor or ".")
    try:
        matches = list(anchor.glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, NotImplementedError):  # two stars beside something, a character that no path has
        return []
    inside = [path for match in matches if match.is_dir() for path in _below(match)]
    return list(dict.fromkeys([*(match for match in matches if match.is_file()), *inside]))


def _before_pattern(pattern: Path) -> str:
    """Return the folders that stand before the first wildcard."""
    parts = pattern.parts
    first = next((k for k, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return str(Path(*parts[:first]))


def _relative(file: File, root: str) -> PurePosixPath:
    """Return where a file lies below the root."""
    if isinstance(file, RemoteFile):
        return PurePosixPath(file.path[len(root) :].lstrip("/"))
    return PurePosixPath(file.relative_to(root).as_posix())


def _is_table(path: PurePosixPath, suffixes: tuple[str, ...], named: str) -> bool:
    hidden = any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.parts)
    if hidden and not named.startswith((".", "_")):
        return False
    return path.name.endswith(suffixes) or fnmatchcase(path.name, named)


def _sorted_by(file: File) -> tuple[str, ...]:
    return PurePosixPath(file.path).parts if isinstance(file, RemoteFile) else file.parts


def _key_value(part: str) -> tuple[str, str | None]:
    key, _, value = part.partition("=")
    return unquote(key), None if value == NOWHERE else unquote(value)

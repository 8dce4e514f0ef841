"""The partitions of a folder, a pattern or an address: each file is one, and its output has its path and its format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from finetune_kit.data.places import find_place
from finetune_kit.data.preparation import Preparation
from finetune_kit.data.remote import File, RemoteFile, is_address, num_bytes, without_secrets
from finetune_kit.errors import DataError
from finetune_kit.foreign import confined
from finetune_kit.recommendation.formats import SUFFIXES, file_kind
from finetune_kit.recommendation.layout import Columns, Layout, find_layout


@dataclass(frozen=True)
class Partition:
    """One file of the input.

    Args:
        name: Its path below the root, with ``/`` between the parts.
        file: Where it is.
        num_bytes: Its size when it was found.
    """

    name: str
    file: File
    num_bytes: int


@dataclass(frozen=True)
class Input:
    """Files that are scored together.

    Args:
        text: What stands for them, without secrets.
        partitions: In the order of their paths.
        root: The folder on this machine whose parts they are; of a pattern, what stands before the first wildcard; None
            for an address.
    """

    text: str
    partitions: tuple[Partition, ...]
    root: Path | None

    def would_hold(self, folder: Path) -> bool:
        """Return whether files in a folder would be partitions, too, or some partitions are in it."""
        if self.root is None:
            return False
        folder, root = folder.resolve(), self.root.resolve()
        if root.is_relative_to(folder):
            return True
        pattern = [] if Path(self.text).is_dir() else Path(self.text).parts[len(self.root.parts) :]
        below = folder.relative_to(root).parts if folder.is_relative_to(root) else None
        return below is not None and _may_match(below, pattern)


def _may_match(folders: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether what is below a folder may match a pattern, part by part."""
    for name, part in zip(folders, pattern, strict=False):
        if part == "**":
            return True
        if not fnmatchcase(name, part):
            return False
    return True


def stands_for_many(text: str) -> bool:
    """Return whether an ``--input`` is scored by partitions: a folder, a pattern, or an address."""
    path = Path(text)
    return is_address(text) or path.is_dir() or (re.search(r"[*?\[]", text) is not None and not path.exists())


def find_input(text: str) -> Input:
    """Return the partitions that an ``--input`` stands for, as `finetune_kit.data.places.find_place` finds them.

    Raises:
        DataError: When there is none, one's format can't be told or its name can't be kept, one is a link that leads
            out of the root, or two are the same file.
        OptionError: For an address that nothing here opens.
    """
    place = find_place(text, "--input", SUFFIXES)
    first = place.files[0]
    root = place.root if place.root is not None else str(PurePosixPath(_path(first)).parent)
    found = tuple(_partition(root, file) for file in place.files)
    seen: dict[Path, File] = {}
    for partition in found:
        if isinstance(file := partition.file, Path) and (other := seen.setdefault(file.resolve(), file)) is not file:
            raise DataError(
                f"{file} and {other} are the same file; take the link away, or its users are answered twice"
            )
    is_here = isinstance(first, Path)
    return Input(place.address if is_here else without_secrets(text), found, Path(root) if is_here else None)


def _path(file: File) -> str:
    return file.path if isinstance(file, RemoteFile) else file.as_posix()


def _partition(root: str, file: File) -> Partition:
    name = file.relative_to(root).as_posix() if isinstance(file, Path) else file.path.removeprefix(root).lstrip("/")
    try:
        name.encode()
        confined(Path(root if isinstance(file, Path) else "/"), name)
    except UnicodeEncodeError:
        raise DataError(f"--input: the name {name!r} is no UTF-8; rename the file") from None
    except ValueError as error:
        raise DataError(f"--input {without_secrets(root)!r}: {error}; copy the file there") from None
    file_kind(file, "--input")
    return Partition(name, file, num_bytes(file))


def is_hidden(name: str) -> bool:
    """Return whether readers of tables in parts pass over a path: a part of it begins with a dot or an underscore."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts)


def find_layouts(partitions: Sequence[Partition], columns: Columns, preparation: Preparation) -> list[Layout]:
    """Return the columns of partitions, which must be the same in all: one look at each, before any is scored.

    Raises:
        DataError: For the first file that can't be read, lacks a column, or has others than the first one.
        OptionError: For names that contradict each other.
    """
    layouts: list[Layout] = []
    for partition in partitions:
        layout = find_layout(partition.file, columns, preparation)
        first = layouts[0] if layouts else layout
        if replace(layout, path=first.path, kind=first.kind) != first:
            raise DataError(
                f"{layout.path} has {_told(layout)}, {first.path} has {_told(first)}; all partitions must have the "
                "same columns: name them, or give the files apart"
            )
        layouts.append(layout)
    return layouts


def _told(layout: Layout) -> str:
    if layout.is_per_user:
        return f"lists of items in {layout.column!r}"
    return f"events in {layout.column!r} {f'with times in {layout.time!r}' if layout.time else 'without times'}"

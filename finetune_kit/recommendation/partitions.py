"""The partitions of a folder or a pattern: each file is one, and its output has its path and its format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from finetune_kit.data.preparation import Preparation
from finetune_kit.errors import DataError
from finetune_kit.foreign import confined
from finetune_kit.recommendation.formats import file_kind
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
    file: Path
    num_bytes: int


@dataclass(frozen=True)
class Input:
    """Files that are scored together.

    Args:
        root: The folder whose parts they are; of a pattern, what stands before the first wildcard.
        partitions: In the order of their names.
    """

    root: Path
    partitions: tuple[Partition, ...]


def stands_for_many(text: str) -> bool:
    """Return whether an ``--input`` names a folder or a pattern, not a file."""
    path = Path(text)
    return path.is_dir() or (glob.has_magic(text) and not path.exists())


def find_input(text: str) -> Input:
    """Return the partitions that an ``--input`` stands for; what begins with a dot or an underscore is none.

    Raises:
        DataError: When there is none, one's format can't be told or its name can't be kept, or one is a link that
            leads out of the root.
    """
    root, files = _below(Path(text)) if Path(text).is_dir() else _matching(text)
    named = {path.relative_to(root).as_posix(): path for path in files}
    found = [_partition(root, name, named[name]) for name in sorted(named) if not is_hidden(name)]
    if not found:
        raise DataError(
            f"--input {text!r}: no file; give a folder with files, or a pattern such as 'logs/**/*.parquet'"
        )
    return Input(root, tuple(found))


def _below(folder: Path) -> tuple[Path, Iterable[Path]]:
    def files() -> Iterator[Path]:
        for here, folders, names in os.walk(folder):
            yield from (Path(here) / name for name in [*names, *folders] if not (Path(here) / name).is_dir())
            yield from (Path(here) / name for name in folders if (Path(here) / name).is_symlink())

    return folder, files()


def _matching(pattern: str) -> tuple[Path, Iterable[Path]]:
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    return root, (path for path in root.glob(str(Path(*parts[first:]))) if path.is_file())


def is_hidden(name: str) -> bool:
    """Return whether readers of tables in parts pass over a path: a part of it begins with a dot or an underscore."""
    return any(part.startswith(".") or re.match(r"_[^=]*$", part) for part in PurePosixPath(name).parts)


def _partition(root: Path, name: str, file: Path) -> Partition:
    try:
        confined(root, name)
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"--input: the name {name!r} is no UTF-8; rename the file") from None
    except ValueError as error:
        raise DataError(f"--input {str(root)!r}: {error}; copy the file there") from None
    if file.is_dir():
        raise DataError(f"--input {str(root)!r}: {name!r} is a link to a folder; give that folder, or copy it there")
    file_kind(file, "--input")
    return Partition(name, file, file.stat().st_size)


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

"""Files that appear whole or not at all, and stay when the power goes."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_kit.errors import CheckpointError, FinetuneKitError, StorageError, one_line
from finetune_kit.foreign import read_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ABANDONED_AFTER = 60.0
"""Seconds that nobody must have written to a dead process's partial file before it is taken away."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room: none on the disk, none in one's share of it, none in a file."""


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path``, on disk, when the block ends well.

    Raises:
        StorageError: When there is no room; what stood at ``path`` is untouched.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            yield partial
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)  # the new name
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Run a block that writes a file; a full disk becomes one line that names the file.

    Raises:
        StorageError: When there is no room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FinetuneKitError) or (number := _no_room(error)) is None:
            raise
        raise StorageError(f"{path} can't be written: {os.strerror(number)}; make room") from error


def _no_room(error: Exception) -> int | None:
    """Return which number of `FULL` an error stands for, or None; safetensors and DuckDB tell it in words."""
    if isinstance(error, OSError):
        return error.errno if error.errno in FULL else None
    said = str(error)
    return next((number for number in FULL if f"(os error {number})" in said or os.strerror(number) in said), None)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if os.name == "nt":  # folders can't be opened there, nor read-only files flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed left of their tries to write a file."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        number = re.fullmatch(r"\.(\d+)\.partial", partial.name.removeprefix(f".{path.name}"))
        with suppress(OSError):  # another process may be faster
            is_old = time.time() - partial.stat().st_mtime > ABANDONED_AFTER  # another machine's may have that number
            if number and partial.is_file() and is_old and not is_alive(int(number[1])):
                partial.unlink()


def is_alive(process: int) -> bool:
    """Return whether a process of this machine is there."""
    if os.name == "nt":  # signal 0 is Ctrl-C there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with appearing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, two spaces deep, ending in a newline."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return a JSON document, two spaces deep, ending in a newline."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write arrays of one length as a Parquet table."""
    import duckdb

    with appearing(path) as partial, duckdb.connect() as connection:
        connection.register("columns", dict(columns))
        connection.table("columns").write_parquet(str(partial))


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a Parquet table."""
    from finetune_kit.data.database import connect, parquet_scan

    with connect() as connection:
        return connection.execute(f"SELECT * FROM {parquet_scan(connection, path)}").fetchnumpy()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, from any device, as a safetensors file; beside them, memory holds the file's content once."""
    from safetensors.torch import save

    content = save(_apart(tensors), dict(metadata or {}))  # `save_file` has a temporary file, which a kill would leave
    with appearing(path) as partial:
        partial.write_bytes(content)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, each with memory of its own, as a safetensors file has them; copies where it must."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() != plain.nbytes:
            plain = plain.clone()
        taken.add(plain.untyped_storage().data_ptr())
        apart[name] = plain
    return apart


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return ``metrics.json`` of a run or a pre-trained backbone; it is written last, so the folder is finished.

    Raises:
        CheckpointError: When it is not there, or damaged.
    """
    path = folder / "metrics.json"
    if not path.exists():
        raise CheckpointError(f"{str(folder)!r} is not finished: there is no {path.name}; go on with it by --resume")
    try:
        metrics = read_json(path)
        if not isinstance(metrics, dict):
            raise ValueError(f"a {type(metrics).__name__} instead of an object")
        return metrics
    except (OSError, ValueError) as error:  # no file, no JSON, not even UTF-8, or nested without end
        raise CheckpointError(f"{path} is damaged: {one_line(error)}; copy or make the folder again") from error

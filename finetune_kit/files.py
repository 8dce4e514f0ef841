"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_kit.errors import CheckpointError, one_line
from finetune_kit.foreign import read_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with appearing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, two spaces deep, ending in a newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
    """Write tensors, from any device, as a safetensors file."""
    from safetensors.torch import save_file

    with appearing(path) as partial:
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(whole, str(partial), dict(metadata or {}))
        partial.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone; all else here is for the group too


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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

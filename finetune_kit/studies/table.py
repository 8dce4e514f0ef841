"""The trials of a search as a table on disk, ``trials.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit.files import write_table
from finetune_kit.studies.space import Dimension
from finetune_kit.studies.study import Row

FILE = "trials.parquet"


def write_rows(folder: Path, rows: Sequence[Row], space: Sequence[Dimension]) -> None:
    """Write a row per trial: ``trial``, ``state``, ``value``, the options by path, and what is known beside them."""
    columns: dict[str, np.ndarray] = {
        "trial": np.array([row.place for row in rows]),
        "state": np.array([row.state for row in rows], dtype=object),
        "value": np.array([np.nan if row.value is None else row.value for row in rows]),
    }
    for dimension in space:
        columns[dimension.path] = _column([row.values.get(dimension.path) for row in rows])
    for name in ("best_epoch", "epochs"):
        columns[name] = np.array([row.about.get(name, 0) for row in rows])
    columns["seconds"] = np.array([row.about.get("seconds", np.nan) for row in rows])
    columns["fault"] = np.array([row.about.get("fault", "") for row in rows], dtype=object)
    write_table(folder / FILE, columns)


def _column(values: Sequence[Any]) -> np.ndarray:
    """Return values as a column: numbers where all that are there are, with NaN for others; else texts."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        if len(known) == len(values):
            return np.array(values)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array(["" if value is None else str(value) for value in values], dtype=object)

"""The workshop in which a dataset is prepared: a DuckDB database on disk that spills instead of growing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import duckdb

from finetune_kit.data.database import working_database
from finetune_kit.data.folder import new_folder
from finetune_kit.errors import DataError

logger = logging.getLogger("finetune_kit.data")
"""Steps (info) and counted warnings of a preparation; the command line shows both on stderr."""

OnBad = Literal["refuse", "drop"]
DEFAULT_MEMORY_LIMIT = "1GB"
"""DuckDB's own limit; the whole process stays below about twice that."""


@dataclass
class Preparation:
    """One dataset in the making.

    For implementers of readers: fill the tables or views ``source``, ``target`` and, if wanted, ``labels`` in
    ``connection``, then call `finetune_kit.data.prepare.write_dataset`.

    Args:
        connection: A DuckDB database on disk, with a memory limit, removed at the end.
        folder: Where the dataset's files are written; becomes the dataset folder at the end.
        scratch: A folder for temporary files, removed at the end.
        on_bad: What becomes of rows that can't be used: ``"refuse"`` everything, or ``"drop"`` them.
        warnings: What was dropped and why, one sentence each; recorded in the dataset.
    """

    connection: duckdb.DuckDBPyConnection
    folder: Path
    scratch: Path
    on_bad: OnBad = "refuse"
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Record a warning in the dataset and log it."""
        self.warnings.append(message)
        logger.warning(message)

    def bad(self, where: str, reason: str, rows: int) -> None:
        """Refuse rows that can't be used, or warn that they are dropped, as ``on_bad`` says.

        Raises:
            DataError: With ``on_bad="refuse"``; names the first row's place, the reason and how many.
        """
        if self.on_bad == "refuse":
            raise DataError(f"{where}: {reason} (such rows: {rows:,}); mend the file or drop them with --on-bad drop")
        self.warn(f"dropped {rows:,} row{'s' * (rows != 1)}, the first at {where}: {reason}")

    def count(self, query: str) -> int:
        """Return the one number that a query gives; 0 for null."""
        row = self.connection.execute(query).fetchone()
        return int(row[0] or 0) if row else 0

    def has_table(self, name: str) -> bool:
        """Return whether a table or view of that name was made."""
        found = self.connection.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = ?", [name])
        return bool(found.fetchall()[0][0])


@contextmanager
def preparing(
    output: Path, memory_limit: str = DEFAULT_MEMORY_LIMIT, on_bad: OnBad = "refuse"
) -> Iterator[Preparation]:
    """Give a `Preparation` whose folder appears at ``output``, whole, when the block ends well.

    Args:
        output: The dataset folder to make.
        memory_limit: How much memory DuckDB may take, e.g. ``"500MB"``; what does not fit is sorted on disk
            beside ``output``.
        on_bad: What becomes of rows that can't be used.

    Raises:
        DataError: When ``output`` is taken, the limit is no amount of memory, or memory or disk run out.
    """
    with new_folder(output) as folder:
        scratch = folder / ".scratch"
        scratch.mkdir()
        try:
            with working_database(scratch, memory_limit) as connection:
                yield Preparation(connection, folder, scratch, on_bad)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

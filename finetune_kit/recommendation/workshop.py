"""Where a recommendation is made: a DuckDB database on disk beside the output, that spills instead of growing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_kit.data.database import working_database
from finetune_kit.data.preparation import DEFAULT_MEMORY_LIMIT, Preparation
from finetune_kit.errors import DataError


class Workshop(Preparation):
    """A database and a folder for temporary files; both vanish at the end."""

    def bad(self, where: str, reason: str, rows: int) -> None:
        """Refuse rows that can't be used.

        Raises:
            DataError: Always; names the first row's place, the reason and how many.
        """
        raise DataError(f"{where}: {reason} (such rows: {rows:,}); mend the file")


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a folder for the block, and take it away again if the block fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # someone else put something there meanwhile
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def workshop(output: Path, memory_limit: str = DEFAULT_MEMORY_LIMIT) -> Iterator[Workshop]:
    """Give a `Workshop` in a hidden folder beside a file that is to be written.

    Args:
        output: That file; missing parent folders are made.
        memory_limit: How much memory DuckDB may take, e.g. ``"500MB"``; what does not fit goes to disk.

    Raises:
        DataError: When the limit is no amount of memory, or memory or disk run out.
    """
    with (
        _folder(output.parent),
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as temporary,
        working_database(Path(temporary), memory_limit) as connection,
    ):
        yield Workshop(connection, Path(temporary), Path(temporary))

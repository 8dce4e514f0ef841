"""Remote files as DuckDB sees them: under numbers, so that no name of theirs is a pattern or holds a secret."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from finetune_kit.data.remote import RemoteFile

PROTOCOL = "ftkit"
BEGINNING = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Mounted(AbstractFileSystem):
    """A read-only file system of the files that were mounted, each ``ftkit://NUMBER/NAME``."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, RemoteFile] = {}
        self._names: dict[int, str] = {}

    def mount(self, file: RemoteFile) -> str:
        """Return the name under which a file is opened from now on."""
        if id(file) not in self._names:  # ids stay distinct, as every file is kept
            self._names[id(file)] = name = f"{len(self._names)}/{file.name}"
            self._files[name] = file
        return f"{PROTOCOL}://{self._names[id(file)]}"

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        return self._file(path).open(mode)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, kind and size of a file."""
        return {"name": path, "type": "file", "size": self._file(path).size}

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
        """Return the one file of that name."""
        return [path]

    def _file(self, path: str) -> RemoteFile:
        return self._files[path.removeprefix(f"{PROTOCOL}://")]

    def modified(self, path: str) -> datetime:
        """Return one moment for all: a number never stands for another content."""
        return BEGINNING


_MOUNTED = Mounted()


def mount(connection: duckdb.DuckDBPyConnection, file: RemoteFile) -> str:
    """Return the name under which a connection reads a remote file."""
    if not connection.filesystem_is_registered(PROTOCOL):
        connection.register_filesystem(_MOUNTED)
    return _MOUNTED.mount(file)

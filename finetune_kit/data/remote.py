"""Files behind fsspec addresses such as ``s3://bucket/events/part-0.parquet``, and what is never said of them.

An address may hold a password or a signature. Neither is printed, logged or recorded: all text that leaves this
module has gone through `without_secrets`. Credentials belong where each library looks for them itself, e.g. in
``AWS_PROFILE``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

from finetune_kit.errors import DataError, FinetuneKitError, OptionError, did_you_mean, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ADDRESS = re.compile(r"[A-Za-z][\w+.-]+(::.*)?://", re.DOTALL)
"""How an address begins; a drive of Windows has one letter."""
SECRETS = (
    (re.compile(r"://(?:[^/\s@]*|[^/\s:@]+:[^\s@]*)@"), "://"),  # user:password@
    (re.compile(r"(https?://[^\s?]*)\?\S*"), r"\1"),  # a signature
    (re.compile(r"(://\S*?)\?[\w.-]+=\S*"), r"\1"),  # elsewhere a question mark may be a pattern's
)
ARCHIVES = ("zip", "tar", "libarchive")
AT_ONCE = 1 << 22
"""Bytes that are asked for at once, and held per open file."""


@dataclass(frozen=True)
class RemoteFile:
    """One file behind an address; it is asked what a `Path` is asked: ``name``, ``suffix``, ``open`` and its text.

    Args:
        address: Where it is, without secrets.
        path: Where it is, as its file system names it.
        size: Its bytes.
        version: What its file system calls this content, where it tells.
        filesystem: Opens it.
    """

    address: str
    path: str
    size: int
    version: str | None = None
    filesystem: AbstractFileSystem | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path.split("?")[0] if self.address.startswith("http") else self.path).name

    @property
    def suffix(self) -> str:
        """How the name ends, e.g. ``".gz"``."""
        return PurePosixPath(self.name).suffix

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open the file for reading bytes; whatever its file system complains of is an ``OSError`` without secrets."""
        assert mode == "rb" and self.filesystem is not None
        with _as_os_error():
            file = self.filesystem.open(self.path, "rb", block_size=AT_ONCE)
        return cast("IO[bytes]", io.BufferedReader(_Told(file), 1 << 16))

    def __str__(self) -> str:
        """Return the address, without secrets."""
        return self.address


File = Path | RemoteFile
"""A file that tables are read from."""


def is_address(text: str) -> bool:
    """Return whether a text is an address such as ``s3://bucket/x``, not a path."""
    return ADDRESS.match(text) is not None


def without_secrets(text: str) -> str:
    """Return a text in which no address has a user, a password or a query any more."""
    for pattern, shown in SECRETS:
        text = pattern.sub(shown, text)
    return text


def num_bytes(file: File) -> int:
    """Return the size of a file."""
    return file.stat().st_size if isinstance(file, Path) else file.size


def open_filesystem(address: str, what: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system that an address names, and the path in it.

    Args:
        address: Such as ``s3://bucket/events``; caches may stand before it: ``simplecache::s3://bucket/events``.
        what: What it is, for the error: ``"source"``.

    Raises:
        OptionError: For an unknown protocol, an archive, or one whose library is missing.
        DataError: When the file system can't be reached.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import available_protocols

    protocols = re.findall(r"(?:^|::)([\w+.-]+)(?=://|::)", address)
    shown = without_secrets(address)
    unknown = [name for name in protocols if name not in available_protocols()]
    if unknown:
        guess = did_you_mean(unknown[0], available_protocols())
        raise OptionError(f"{what} {shown!r}: fsspec knows no {unknown[0]}://.{guess} Give for example s3:// or gs://")
    if any(name in ARCHIVES for name in protocols):
        raise OptionError(f"{what} {shown!r}: archives are not read; unpack it, and give the files")
    with _in_one_line(address, what):
        try:
            return url_to_fs(address)
        except ImportError as error:
            missing = (error.__cause__ if isinstance(error.__cause__, ImportError) else error).name
            raise OptionError(
                f"{what} {shown!r} needs a library that is not installed; "
                + (f"pip install {missing}" if missing else without_secrets(one_line(error)))
            ) from error


def find_remote(address: str, what: str) -> tuple[list[RemoteFile], str, bool]:
    """Return all files that an address stands for: itself, those below it, or those that match it as a pattern.

    Returns:
        The files, what all their paths begin with, and whether the address names one file itself.

    Raises:
        OptionError: As `open_filesystem` does.
        DataError: When access fails. That there is no file is for the caller to say.
    """
    filesystem: Any
    filesystem, path = open_filesystem(address, what)
    with _in_one_line(address, what):
        filesystem.invalidate_cache()
        try:
            info = filesystem.info(path)
        except FileNotFoundError:
            info = {"type": "pattern"}
        if info["type"] == "file":
            return [_remote_file(filesystem, path, info)], path, True
        if info["type"] == "directory":
            listed: Any = filesystem.find(path, detail=True)
            found, root = listed, path
        else:
            found, root = _matches(filesystem, path), re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        return [_remote_file(filesystem, name, info) for name, info in found.items()], root, False


def _matches(filesystem: Any, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the files that match a pattern, and those below folders that do."""
    if not re.search(r"[*?\[]", pattern):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, info in filesystem.glob(pattern, detail=True).items():
        found |= {name: info} if info["type"] == "file" else filesystem.find(name, detail=True)
    return found


def _remote_file(filesystem: AbstractFileSystem, path: str, info: dict[str, Any]) -> RemoteFile:
    shown = without_secrets(filesystem.unstrip_protocol(path))
    if info.get("size") is None:
        raise DataError(f"{shown}: its size can't be told; download it, and give that file")
    version = next((str(info[key]).strip('"') for key in ("ETag", "etag", "md5Hash") if info.get(key)), None)
    return RemoteFile(shown, path, int(info["size"]), version, filesystem)


@contextmanager
def _in_one_line(address: str, what: str) -> Iterator[None]:
    """Turn whatever a file system raises into one line: each library has errors of its own."""
    try:
        yield
    except FinetuneKitError:
        raise
    except Exception as error:
        raise DataError(
            f"{what} {without_secrets(address)!r} can't be read: {complaint(error)}; check the address, and that its "
            "credentials are where the library looks for them"
        ) from error


def complaint(error: BaseException) -> str:
    """Return what went wrong in one line without secrets, also where DuckDB wraps a Python error in a traceback."""
    text = str(error) or type(error).__name__
    if text.startswith("Traceback ("):
        text = text.split("\n\n")[0].strip().rpartition("\n")[2]
    elif not isinstance(error, OSError):
        text = one_line(error, with_type=True, first=True)
    return without_secrets(text.strip().partition("\n")[0])


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise OSError(complaint(error)) from None


class _Told(io.RawIOBase):
    """A file of a remote file system whose every complaint is an ``OSError``."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_error():
            some = self._file.read(len(buffer))
        buffer[: len(some)] = some
        return len(some)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _as_os_error():
            return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()
        super().close()

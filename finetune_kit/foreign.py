"""Reading what others made: files are bounded before they are parsed, paths stay in their folder, text does nothing.

What stands against whom is in ``SECURITY.md``.
"""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyrefly: ignore[missing-import]  (installed on Python 3.10 alone)

MOST_JSON, MOST_TOML = 16 * 2**20, 2**16
"""Bytes of the largest JSON and TOML file that is read; ours have some kilobytes."""
MOST_DOTS = 2000
"""Dots on a line of TOML: the time to read a dotted key grows with the square of its length."""
MOST_HEADER = 16 * 2**20
"""Bytes of the largest header of a safetensors file that is read: some hundred thousand tensors."""
DEEPEST = 100
"""How deep a JSON or TOML file may nest."""
_UNSEEN = (
    r"\x00-\x1f\x7f-\x9f"  # control characters, which a terminal obeys
    r"\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line ends and marks that turn the order of what follows
    r"\ud800-\udfff"  # halves of characters: a file's name that is no UTF-8; they can't be printed
)


def visible(text: str, keep: str = "") -> str:
    r"""Return a text in which whatever acts on a terminal stands as its escape, e.g. ``"\x1b"``.

    Args:
        text: May hold names of users, items, datasets: anybody's.
        keep: Characters that stay, e.g. ``"\n"``.
    """
    return re.sub(f"[{_UNSEEN}]", lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def visible_json(text: str) -> str:
    """Return a JSON text of the same meaning in which whatever acts on a terminal is escaped."""
    return re.sub(f"[{_UNSEEN}]", lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def read_json(path: Path) -> Any:
    """Return what a JSON file says.

    Raises:
        OSError: When it can't be read.
        ValueError: When it is no JSON, no UTF-8, larger than `MOST_JSON` or deeper than `DEEPEST`.
    """
    text = _bounded(path, MOST_JSON).decode("utf-8")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEEPEST}") from None
    _refuse_deep([value])
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        OSError: When it can't be read.
        ValueError: When it is no TOML, no UTF-8, larger than `MOST_TOML` or deeper than `DEEPEST`.
    """
    text = _bounded(path, MOST_TOML).decode("utf-8")
    if max(line.count(".") for line in text.split("\n")) > MOST_DOTS:
        raise ValueError(f"it has a line with more than {MOST_DOTS:,} dots")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEEPEST}") from None
    _refuse_deep([value])
    return value


def _bounded(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def _refuse_deep(level: Iterable[Any]) -> None:
    for _ in range(DEEPEST):
        nested = [part for part in level if isinstance(part, dict | list)]
        if not nested:
            return
        level = [inner for part in nested for inner in (part.values() if isinstance(part, dict) else part)]
    raise ValueError(f"it nests deeper than {DEEPEST}")


def confined(folder: Path, name: Any) -> Path:
    """Return the path of a name that a file gives, inside a folder.

    Args:
        folder: Where it must stay; may itself be a link.
        name: As the file has it, with ``/`` between parts.

    Raises:
        ValueError: For what is no relative path, leads upwards, or is a link that leads out of the folder or in a
            circle.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{name!r} is no path")
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise ValueError(f"{name!r} leads out of the folder")
    path = folder / name
    if _leads_in_a_circle(path):
        raise ValueError(f"{name!r} is a link that leads in a circle")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is a link that leads out of the folder")
    return path


def _leads_in_a_circle(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def refuse_name(name: Any) -> None:
    """Raise for a name that can't be that of one folder or file.

    Raises:
        ValueError: For no text, separators, ``..``, or more than 255 bytes.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"{str(name)[:50]!r} is no name of a folder")
    if len(name.encode(errors="surrogatepass")) > 255:
        raise ValueError(f"the name {name[:50]!r}… is too long")


def one_name(text: str) -> str:
    """Return a text as part of a folder's name: what separates folders becomes a dash."""
    return re.sub(r"[/\\\0]", "-", text)


def refuse_large_header(path: Path) -> None:
    """Raise for a safetensors file whose header is larger than `MOST_HEADER`; the rest is checked by its reader.

    Raises:
        OSError: When it can't be read.
        ValueError: Naming the header's size.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER:
        raise ValueError(f"its header claims {size:,} bytes, more than {MOST_HEADER:,}")

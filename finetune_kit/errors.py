"""Everything that finetune-kit raises for what a user can get wrong.

The tree::

    FinetuneKitError (ValueError)
    ├── UnknownNameError    no strategy, backbone, dataset, … of that name
    ├── OptionError         an option that does not exist, or a value it does not take
    ├── DataError           events or a dataset folder that can't be used as they are
    ├── PluginError         two plugins that can't live together, or one that breaks a contract
    ├── CheckpointError     weights that don't fit: another base, other vocabularies, a damaged file
    └── StorageError        a file that can't be written, as the disk is full

A message says, in one line: what was wrong (with the value), what would be right, what to do.
The command line prints it and exits with 2. Our own broken invariants are `assert`s and exit with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message that are shown; a value in it may be a whole file's line."""


def _printable(message: str) -> str:
    if len(message) > LONGEST:
        message = f"{message[: LONGEST * 3 // 4]} … {message[-LONGEST // 4 :]}"
    if message.isprintable():
        return message
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in message)


class FinetuneKitError(ValueError):
    """Whatever a user of finetune-kit can mend: the base of all errors here.

    Its message is one line of printable characters, whatever ids, names and values stand in it: what is not printable
    is escaped (so nothing from a file steers a terminal), and the middle of what is very long is left out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_printable(message))


class UnknownNameError(FinetuneKitError):
    """Nothing of this kind has that name."""


class OptionError(FinetuneKitError):
    """An option that does not exist, or a value that it does not take."""


class DataError(FinetuneKitError):
    """Events or a dataset folder that can't be used as they are."""


class PluginError(FinetuneKitError):
    """Plugins that can't live together, or one that breaks a contract."""


class CheckpointError(FinetuneKitError):
    """Saved weights that don't fit what they are loaded into."""


class StorageError(FinetuneKitError):
    """A file that can't be written, as there is no room; what stood there before is untouched."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of the known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not installed, e.g. ``no strategy named 'peterec'. …``."""
    known = sorted(known)
    installed = ", ".join(repr(other) for other in known) or "none"
    return UnknownNameError(f"no {kind} named {name!r}.{did_you_mean(name, known)} Installed: {installed}")


def one_line(error: BaseException, *, with_type: bool = False, first: bool = False) -> str:
    """Return what any error says, in one line and without a full stop; the name of its type where it says nothing.

    Args:
        error: Of a library, or of a third party's code.
        with_type: Let the name of its type stand before it.
        first: Leave out all lines but the first that says something; DuckDB's others are for programmers.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:1] if first else lines).rstrip(".")
    name = type(error).__name__
    return (f"{name}: {said}" if with_type else said) if said else name

"""Memory that runs out becomes one line that says which setting to lower; `ftkit --help` imports this, so no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_kit.errors import FinetuneKitError, one_line

_NAMES = ("OutOfMemoryError", "OutOfMemoryException")
"""What torch and DuckDB call it."""
_SAID = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",
    "storage size calculation overflowed",
    "array is too big",
    "maximum allowed dimension",
    "maximum allowed size",
    "too large to convert",
    "overflow when unpacking",
)
"""What allocators say in errors of other names, in lower case."""
ANYWHERE = "the settings that matter most are the batch sizes (finetune, pretrain, evaluation) and data.max_length"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of any library says that memory ran out, of the machine or of a device."""
    if isinstance(error, FinetuneKitError):
        return False  # told already, with better advice
    if isinstance(error, MemoryError) or type(error).__name__ in _NAMES:
        return True
    return isinstance(error, RuntimeError | ValueError | OverflowError | TypeError) and any(
        said in str(error).lower() for said in _SAID
    )


def out_of_memory(error: BaseException, doing: str, advice: str) -> FinetuneKitError:
    """Return the error that says in one line what was being done, what ran out and what to lower."""
    return FinetuneKitError(f"{doing} needs more memory than there is ({_amount(error)}); {advice}")


@contextmanager
def enough_memory(doing: str, advice: str) -> Iterator[None]:
    """Run a block; where memory runs out in it, say which setting to lower.

    Args:
        doing: What the block does, e.g. ``"evaluation"``; begins the error.
        advice: What to lower; ends the error.

    Raises:
        FinetuneKitError: In place of what an allocator raises.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, doing, advice) from error


def _amount(error: BaseException) -> str:
    """Return what an allocator says of how much was wanted, without the advice that it adds for programmers."""
    said = one_line(error, first=True)
    if "you tried to allocate" in said:  # after a file and a line of torch's own
        said = said[said.index("you tried to allocate") :]
    return said.split(" If reserved")[0].split(". GPU ")[0][:200]

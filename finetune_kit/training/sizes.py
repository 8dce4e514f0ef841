"""Whether a model is as large as its weights, and fits this machine: found out before it takes any memory.

A configuration that somebody sent can ask for any size. So a model is first built on torch's ``meta`` device, where
tensors have shapes and nothing else. One that can't be built there (its class looks at numbers) is built outright.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from finetune_kit.errors import CheckpointError, OptionError

MOST_TENSORS = 10_000
"""Parameter tensors of the largest model, those counted that are made on the way; the largest of ours has hundreds."""


_MEASURING: list[bool] = []
"""One for each `_without_memory` that is entered."""


class TooLargeError(OptionError):
    """A model that is being built has too much of something."""


@contextmanager
def _without_memory(most_tensors: int) -> Iterator[None]:
    """Build modules on the meta device; raise `TooLargeError` as soon as they have more than the machine holds."""
    memory, seen = _memory(), {"tensors": 0, "bytes": 0}
    _MEASURING.append(True)

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:
            seen["tensors"] += 1
            seen["bytes"] += parameter.numel() * parameter.element_size()
        if seen["bytes"] > memory:
            raise TooLargeError(f"more than the {memory / 2**30:,.0f} GiB of memory that this machine has")
        if seen["tensors"] > most_tensors:
            raise TooLargeError(f"more than {most_tensors:,} parameter tensors")

    hook: Any = register_module_parameter_registration_hook(count)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hook.remove()
        _MEASURING.pop()


def _memory() -> int:
    """Return this machine's memory in bytes; where that can't be known, as much as none has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 2**48


def refuse_too_large(build: Callable[[], object], what: str) -> None:
    """Raise if a model needs more memory than there is.

    Args:
        build: Builds it.
        what: Its name, for the error.

    Raises:
        TooLargeError: Saying which options to lower.
    """
    if _MEASURING:  # it is being counted already, as a part of what is built
        return
    try:
        with _without_memory(MOST_TENSORS):
            build()
    except TooLargeError as error:
        raise TooLargeError(
            f"{what} would need {error}; lower its options (e.g. backbone.dim, num_blocks, data.max_length), or use a "
            "dataset with fewer items"
        ) from None
    except Exception:  # building it outright says what is wrong, or that nothing is
        return


Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def refuse_other_shapes(
    build: Callable[[], Mapping[str, Tensor]], found: Shapes, where: Path, most_tensors: int = MOST_TENSORS
) -> None:
    """Raise if a model has not the shapes that its weights have.

    Args:
        build: Builds the model and returns its tensors by name.
        found: The shapes in a file, by name.
        where: The file's folder, for the error.
        most_tensors: Parameter tensors that may be made on the way.

    Raises:
        CheckpointError: Naming the first that differs.
    """
    try:
        with _without_memory(most_tensors):
            wanted = shapes_of(build())
    except TooLargeError as error:
        raise CheckpointError(f"the weights in {str(where)!r} are not those of its configuration: {error}") from None
    except Exception:  # building it outright says what is wrong, or that nothing is
        wanted = shapes_of(build())
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"the weights in {str(where)!r} are not those of its configuration: {name!r} is "
                f"{found.get(name, 'missing')} there, {wanted.get(name, 'not wanted')} by the configuration"
            )

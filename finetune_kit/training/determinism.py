"""Computing by deterministic algorithms alone: the same numbers from the same seed, also where threads race.

Without it, sums that several threads add up (gradients of rows that several instances look up, for example) come in
another order in each run, and round otherwise. On a CPU it is on unless ``run.deterministic = false``; elsewhere it
costs speed, and some operations have no deterministic form at all, so it is on where it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn

from finetune_kit.errors import OptionError, one_line
from finetune_kit.sections import Deterministic

_MEMORY: Any = torch.utils.deterministic  # its attributes are made at run time
WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""Variable that cuBLAS reads before its first product, and the values under which it is deterministic."""


def is_deterministic(device: torch.device, wanted: Deterministic) -> bool:
    """Return whether a run on a device computes by deterministic algorithms alone."""
    return wanted == "true" or (wanted == "auto" and device.type == "cpu")


def prepare_device(device: torch.device, wanted: Deterministic) -> None:
    """Set what must be set before anything is computed on a device; later is too late.

    Raises:
        OptionError: When the environment asks cuBLAS for what is not deterministic.
    """
    if device.type != "cuda" or not is_deterministic(device, wanted):
        return
    value = os.environ.setdefault(WORKSPACE, WORKSPACES[0])
    if value not in WORKSPACES:
        raise OptionError(f"{WORKSPACE}={value} is not deterministic; unset it, or set it to {' or '.join(WORKSPACES)}")


@contextmanager
def deterministically(device: torch.device, wanted: Deterministic) -> Iterator[None]:
    """Run a block that computes by deterministic algorithms alone, if that is wanted; afterwards all is as before.

    Raises:
        OptionError: Within, for an operation that has no deterministic form on the device.
    """
    prepare_device(device, wanted)
    if not is_deterministic(device, wanted):
        yield
        return
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, flags = _MEMORY.fill_uninitialized_memory, (cudnn.deterministic, cudnn.benchmark)
    torch.use_deterministic_algorithms(True)
    _MEMORY.fill_uninitialized_memory = False  # nothing here reads it, and filling takes its time
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = one_line(error, first=True).split(". ")[0]
        advice = "set run.deterministic=false" if device.type == "cpu" else "leave out --deterministic"
        raise OptionError(f"deterministic on {device.type}: {reason}; {advice}") from error
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        _MEMORY.fill_uninitialized_memory = filled
        cudnn.deterministic, cudnn.benchmark = flags


def machine_facts(device: torch.device, wanted: Deterministic) -> dict[str, str | int | bool]:
    """Return what of the machine decides a run's numbers, for ``metrics.json``."""
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "deterministic": is_deterministic(device, wanted),
    }

"""Devices and precision, by lightning-fabric: nothing else in the project knows where tensors live."""

from __future__ import annotations

import logging
import signal
from typing import Literal, get_args

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from finetune_kit.errors import OptionError, did_you_mean
from finetune_kit.interruption import deadly
from finetune_kit.processes import TIMEOUT, Job, join

Precision = Literal["32", "bf16-mixed", "16-mixed"]


def make_fabric(
    device: str = "auto", precision: str = "32", job: Job | None = None, *, divided: bool = False
) -> Fabric:
    """Return a fabric for one device, or for this process's in a job of several, which it joins.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto`` takes a GPU where there is one.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.
        job: The processes that train together; None for this one alone.
        divided: Whether they divide item tables, rather than sharing batches.

    Raises:
        OptionError: For a device that is not there, a precision that it can't do, or too few devices for the job.
    """
    kind, index = checked_device(device, precision, 1 if job is None else job.per_machine)
    if job is None:
        return Fabric(accelerator=kind, devices=[index] if kind == "cuda" else 1, precision=precision)  # pyrefly: ignore[bad-argument-type]  (checked above)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else it tells that it begins
    strategy = DDPStrategy(
        process_group_backend="nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT, find_unused_parameters=True
    )
    fabric = Fabric(
        accelerator=kind,
        strategy=strategy,
        devices=job.per_machine,
        num_nodes=job.machines,
        precision=precision,  # pyrefly: ignore[bad-argument-type]  (checked above)
    )
    with deadly(signal.SIGTERM):  # whoever the others wait for may never come
        fabric.launch()
        join(fabric, divided=divided)
    return fabric


def checked_device(device: str, precision: str, number: int = 1) -> tuple[str, int]:
    """Return the kind of a device that can be used, and which one of its kind.

    Args:
        device: As for `make_fabric`.
        precision: As for `make_fabric`.
        number: How many of the kind are needed on this machine; a CPU serves any number of processes.

    Raises:
        OptionError: As for `make_fabric`.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise OptionError(
            f"--device {device!r} is no device.{did_you_mean(kind, ['auto', 'cpu', 'cuda', 'mps'])} "
            "Use auto, cpu, cuda, cuda:N or mps"
        )
    if precision not in get_args(Precision):
        raise OptionError(f"--precision {precision!r} is none of {', '.join(get_args(Precision))}")
    available = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count())), *(["mps"] if _has_mps() else [])]
    if device not in ("auto", "cuda", *available) or (device == "cuda" and "cuda:0" not in available):
        raise OptionError(f"--device {device!r} is not there; this machine has {', '.join(available)}")
    if kind == "auto":
        kind = "cuda" if "cuda:0" in available else available[-1]
    if precision == "16-mixed" and kind == "cpu":
        raise OptionError("--precision 16-mixed needs a GPU; on a CPU use 32 or bf16-mixed")
    if number > 1 and kind != "cpu" and (index or sum(name.startswith(kind) for name in available) < number):
        raise OptionError(
            f"{number} processes need {number} devices, and --device {device!r} is one; this machine has "
            f"{', '.join(available)}. Use --devices 1, --device cpu, or cuda on a machine with {number} GPUs"
        )
    return kind, int(index or 0)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()

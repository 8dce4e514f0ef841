"""Devices and precision, by lightning-fabric: nothing else in the project knows where tensors live."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from lightning_fabric import Fabric

from finetune_kit.errors import OptionError, did_you_mean

Precision = Literal["32", "bf16-mixed", "16-mixed"]


def make_fabric(device: str = "auto", precision: str = "32") -> Fabric:
    """Return a fabric for one device.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto`` takes a GPU where there is one.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        OptionError: For a device that is not there, or a precision that it can't do.
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
    return Fabric(accelerator=kind, devices=[int(index or 0)] if kind == "cuda" else 1, precision=precision)  # pyrefly: ignore[bad-argument-type]  (checked above)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()

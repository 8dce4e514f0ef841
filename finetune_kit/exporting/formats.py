"""The formats that a graph is written in, and running what was written; this imports no torch until it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from finetune_kit.errors import OptionError, PluginError, did_you_mean, one_line
from finetune_kit.files import storing
from finetune_kit.memory import is_out_of_memory

if TYPE_CHECKING:
    from finetune_kit.exporting.tracing import Graph

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""Inputs or outputs by name."""


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        name: What users type.
        file: The file's name.
        write: Writes a graph to a file; the last argument is the version of ONNX's operators.
        open: Returns what a file computes, a function from inputs to outputs; on the CPU, in the format's own engine.
        packages: What must be installed besides torch.
        is_topk_stable: Whether its engines take the first of equal values in a ``topk``.
    """

    name: str
    file: str
    write: Callable[[Graph, Path, int | None], None]
    open: Callable[[Path], Callable[[Arrays], Arrays]]
    packages: tuple[str, ...] = ()
    is_topk_stable: bool = False


def _write_torch(graph: Graph, path: Path, opset: int | None) -> None:
    import torch

    content = BytesIO()  # torch's own writer ends the whole process where the disk is full
    torch.export.save(graph.program, content)
    with storing(path):
        path.write_bytes(content.getbuffer())


def _open_torch(path: Path) -> Callable[[Arrays], Arrays]:
    import torch

    module = torch.export.load(path).module()  # our own file, written a moment ago

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def _write_onnx(graph: Graph, path: Path, opset: int | None) -> None:
    import torch

    from finetune_kit.exporting.tracing import quietly

    try:
        with quietly():
            made = torch.onnx.export(
                graph.program,
                dynamo=True,
                opset_version=opset,
                output_names=list(graph.outputs),
                dynamic_shapes={name: {0: "users"} for name in graph.inputs},
                verbose=False,
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = one_line(_root(error), first=True)
        raise PluginError(
            f"the graph can't be written as ONNX{'' if opset is None else f' of opset {opset}'}: {reason}; "
            "--format torch-export writes it as it is"
        ) from error
    assert made is not None
    found = made.model.opset_imports[""]
    if opset not in (None, found):
        raise OptionError(
            f"--opset {opset} can't be had: torch wrote this graph in opset {found}; leave the option out, or name one "
            f"that torch and onnx know, from {found} on"
        )
    with storing(path):
        made.save(path)


def _root(error: BaseException) -> BaseException:
    """Return what an error came of: an operation that ONNX lacks, e.g., stands at the end of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _open_onnx(path: Path) -> Callable[[Arrays], Arrays]:
    import onnxruntime  # pyrefly: ignore[missing-module-attribute]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return {name: np.asarray(array) for name, array in zip(names, session.run(names, dict(inputs)), strict=True)}

    return run


FORMATS = {
    made.name: made
    for made in (
        Format("torch-export", "model.pt2", _write_torch, _open_torch),
        Format(
            "onnx", "model.onnx", _write_onnx, _open_onnx, ("onnx", "onnxscript", "onnxruntime"), is_topk_stable=True
        ),
    )
}


def find_format(name: str, opset: int | None = None) -> Format:
    """Return a format by name, after checking that it can be written here.

    Raises:
        OptionError: For a name that is none, or an opset that has no effect.
        PluginError: When packages that it needs are not installed.
    """
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise OptionError(f"--format {name!r} is none of {known}.{did_you_mean(name, FORMATS)}")
    if opset is not None and name != "onnx":
        raise OptionError(f"--opset has no effect with --format {name}; it is for onnx, leave it out")
    found = FORMATS[name]
    if missing := [package for package in found.packages if not _is_installed(package)]:
        raise PluginError(f"--format {name} needs {' and '.join(missing)}; pip install 'finetune-kit[onnx]'")
    return found


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None

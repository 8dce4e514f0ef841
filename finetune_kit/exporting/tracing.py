"""One graph of what a run computes in evaluation, traced by `torch.export` for any number of users.

A graph can't branch on values. So blocks with gates compute every branch for everybody and select: what they can't do
otherwise while they are traced they ask `torch.compiler.is_exporting` about.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from traceback import walk_tb

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from finetune_kit.errors import FinetuneKitError, PluginError, one_line
from finetune_kit.exporting.served import SEQUENCE, USER, Served
from finetune_kit.memory import is_out_of_memory
from finetune_kit.seeding import generator
from finetune_kit.tryout import made_up_sequence

EXAMPLE_USERS = 3
"""Users of the batch that is traced: more than one, as one may be spread over many."""
NOTES = ("stack_trace", "nn_module_stack", "from_node")
"""What torch notes of each operation for programmers: lines of source with their paths on this machine."""


@dataclass(frozen=True)
class Graph:
    """What was traced.

    Args:
        program: The graph, with its weights.
        inputs: An example of each input, by name, in their order.
        outputs: What the model makes of them.
    """

    program: ExportedProgram
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@torch.no_grad()
def traced(served: Served, name: str, length: int) -> Graph:
    """Return the graph of a strategy; ``user`` is an input only where the strategy looks at it.

    Args:
        served: What is traced, on the CPU.
        name: The strategy's, for errors.
        length: Of the sequences.

    Raises:
        PluginError: When it can't be traced; says what stands in the way.
    """
    random = generator(0, "example users")
    inputs = {SEQUENCE: made_up_sequence(EXAMPLE_USERS, length, served.strategy.backbone.num_items, random)}
    if not _can_do_without_users(served, inputs):
        inputs[USER] = torch.arange(1, EXAMPLE_USERS + 1)
    program = _traced(served, name, inputs)
    for node in program.graph.nodes:
        for note in NOTES:
            node.meta.pop(note, None)
    program.example_inputs = None  # they would be pickled into the file
    return Graph(program, inputs, served(**inputs))


def _can_do_without_users(served: Served, inputs: dict[str, Tensor]) -> bool:
    try:
        served(**inputs)
    except Exception:  # whatever it was, tracing says it if it is not that
        return False
    return True


def _traced(served: Served, name: str, inputs: dict[str, Tensor]) -> ExportedProgram:
    users = Dim("users")
    try:
        with quietly():
            return torch.export.export(served, (), inputs, dynamic_shapes={name: {0: users} for name in inputs})
    except FinetuneKitError:
        raise
    except Exception as error:  # whatever a third party's code or torch.export says
        if is_out_of_memory(error):
            raise
        raise PluginError(f"{name!r} can't be exported: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return in one line what stood in the way, and what to do about it."""
    said, place = str(error), _place(error)
    if "data-dependent" in said or type(error).__name__ == "GuardOnDataDependentSymNode":
        return (
            f"what it does{place} depends on values, and one graph is to serve all users; compute every case and "
            "select with torch.where there, if torch.compiler.is_exporting()"
        )
    if "specialized it to be a constant" in said:
        return (
            "something in it takes the number of users for a constant, e.g. len(tensor); take it from "
            "tensor.shape[0] instead"
        )
    return f"{one_line(error, with_type=True, first=True)}{place}; ftkit --traceback shows where"


def _place(error: Exception) -> str:
    """Return the line outside of torch and of this file in which an error arose."""
    own = ("torch", __name__, "contextlib")
    frames = [
        (frame, line)
        for frame, line in walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith(own)
    ]
    if not frames:
        return ""
    frame, line = frames[-1]
    return f" ({Path(frame.f_code.co_filename).name}, line {line})"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what torch's exporters log, warn and print for their programmers from the user, for as long as this lasts.

    Among it: that torchvision is not installed, that a GRU assigns its own weights anew, and whole graphs.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

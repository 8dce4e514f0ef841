"""What is exported: one graph from users' padded source items to scores, or to the best answers.

The graph is that of evaluation, traced by `torch.export` for any number of users. It can't branch on values, so blocks
with gates compute every branch for everybody and select (`torch.compiler.is_exporting` tells them); where a strategy
merges into a plain backbone, that is traced instead of it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from finetune_kit.errors import FinetuneKitError, PluginError, one_line
from finetune_kit.memory import is_out_of_memory
from finetune_kit.seeding import generator
from finetune_kit.strategy import Strategy
from finetune_kit.task import LabelTask
from finetune_kit.training.merge import merged_strategy, users_only
from finetune_kit.tryout import made_up_sequence

if TYPE_CHECKING:
    from finetune_kit.training.assemble import Run

EXAMPLE_USERS = 3
"""Users of the batch that is traced; neither 1 nor a size that the model has elsewhere."""
USER, SEQUENCE = "user", "sequence"
"""Names of the inputs."""
GATES = ("gates", "skipped")
"""Names of the outputs that tell what a policy decided."""


class Served(nn.Module):
    """A strategy as a server calls it.

    Args:
        strategy: In evaluation mode.
        top: How many of the best answers are wanted; None wants the scores of all.
        is_topk_stable: Whether, in the engine that will run it, ``topk`` takes the first of equal values, as ONNX says
            and torch does not.
    """

    def __init__(self, strategy: Strategy, top: int | None = None, *, is_topk_stable: bool = False) -> None:
        super().__init__()
        self.strategy = strategy
        self.top = top
        self.is_topk_stable = is_topk_stable
        is_label = isinstance(strategy.task, LabelTask)
        self.answers, self.measure = ("classes", "probabilities") if is_label else ("items", "scores")

    def forward(self, sequence: Tensor, user: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs by name.

        Args:
            sequence: Source item ids ``(users, length)`` int64, left-padded with 0.
            user: User ids ``(users,)`` int64; only for strategies that draw per user.

        Returns:
            ``scores``, or a label's ``probabilities``, ``(users, answers)``; with ``top`` those of the best alone,
            ``(users, top)`` descending, after their columns in the whole, ``items`` or ``classes``. Then ``gates`` and
            ``skipped``, ``(users, blocks)``, where the strategy has them.
        """
        user = sequence.new_zeros(sequence.shape[0]) if user is None else user
        encoded = self.strategy.encode(users_only(user, sequence))
        scores = self.strategy.task.scores(encoded.vectors)
        scores = scores.softmax(dim=1) if self.answers == "classes" else scores
        if self.top is None:
            outputs = {self.measure: scores}
        else:
            values, columns = scores.topk(self.top) if self.is_topk_stable else best_of_fixed_shape(scores, self.top)
            outputs = {self.answers: columns, self.measure: values}
        chosen = zip(GATES, (encoded.gates, encoded.skipped), strict=True)
        return outputs | {name: gate.float() for name, gate in chosen if gate is not None}


def best_of_fixed_shape(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return what `finetune_kit.recommendation.answers.best` does, with no shape that depends on values.

    Args:
        scores: ``(users, answers)``.
        num: At most ``answers``.
    """
    lowest = scores.topk(num, dim=1).values[:, -1:]  # (users, 1)
    above, level = scores > lowest, scores == lowest
    room = num - above.sum(dim=1, keepdim=True)  # (users, 1)
    taken = above | (level & (level.cumsum(dim=1) <= room))  # num in each row
    place = torch.arange(scores.shape[1], 0, -1, device=scores.device)  # no two alike, so topk leaves nothing open
    columns = torch.where(taken, place, 0).topk(num, dim=1).indices  # ascending
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def strategy_to_export(run: Run) -> Strategy:
    """Return the plain backbone with a head that a run's strategy merges into, or the strategy if it does not."""
    try:
        return merged_strategy(run)
    except PluginError:
        return run.strategy


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
    """Return the graph of a strategy; ``user`` is an input only where the outputs depend on it.

    Args:
        served: What is traced, on the CPU.
        name: The strategy's, for errors.
        length: Of the sequences.

    Raises:
        PluginError: When it can't be traced; says what stands in the way.
    """
    random = generator(0, "example users")
    inputs = {
        SEQUENCE: made_up_sequence(EXAMPLE_USERS, length, served.strategy.backbone.num_items, random),
        USER: torch.arange(1, EXAMPLE_USERS + 1),
    }
    program = _traced(served, name, inputs)
    if not any(node.name == USER and node.users for node in program.graph.find_nodes(op="placeholder")):
        del inputs[USER]
        program = _traced(served, name, inputs)
    for node in program.graph.nodes:  # lines of source with their paths on this machine: most of a small file
        for note in ("stack_trace", "nn_module_stack", "from_node"):
            node.meta.pop(note, None)
    program.example_inputs = None  # they would be pickled into the file
    return Graph(program, inputs, served(**inputs))


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
        sys.stdout.flush()

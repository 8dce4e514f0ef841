"""Whether an exported file computes what the run does: both are asked for the same users, in several batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune_kit.errors import CheckpointError, PluginError
from finetune_kit.exporting.formats import Arrays
from finetune_kit.exporting.served import GATES, SEQUENCE, USER, Served
from finetune_kit.seeding import generator
from finetune_kit.training.merge import users_only
from finetune_kit.tryout import made_up_sequence, relative_difference

if TYPE_CHECKING:
    from finetune_kit.training.assemble import Run

BATCHES = (1, 2, 7, 22)
"""Users of each batch; none has as many as the one that was traced."""
MADE_UP = 8
"""Users among them who are not the dataset's: one without items, one with a single item, one with as many as fit."""
TOLERANCE = 1e-4
"""How far outputs may differ, relative to the largest: engines add up in other orders."""
AT_THE_EDGE = 1
"""Users for whom a hard policy may decide otherwise: where two actions are as likely but for rounding."""


@dataclass(frozen=True)
class Difference:
    """How far a file and the run are apart.

    Args:
        largest: The largest difference of an output, relative to the largest value of that output.
        num_users: Users asked for.
        num_otherwise: Users for whom a hard policy decided otherwise; their scores are compared under the file's gates.
    """

    largest: float
    num_users: int
    num_otherwise: int


def compare(run: Run, served: Served, compute: Callable[[Arrays], Arrays], inputs: list[str]) -> Difference:
    """Return how far an exported file is from the run.

    Args:
        run: The run itself, on the CPU in evaluation mode: not what its strategy merges into.
        served: What was exported.
        compute: From inputs to outputs, by the file.
        inputs: Names of the file's inputs.

    Raises:
        PluginError: When the file computes something else.
        CheckpointError: When the run's scores are no numbers.
    """
    original = Served(run.strategy)
    user, sequence = users_to_ask(run)
    largest, num_otherwise = 0.0, 0
    for users, items in zip(user.split(BATCHES), sequence.split(BATCHES), strict=True):
        given = {USER: users.numpy(), SEQUENCE: items.numpy()}
        outputs = compute({name: given[name] for name in inputs})
        found = {name: torch.from_numpy(array) for name, array in outputs.items()}
        with torch.no_grad():
            expected = original(items, users)
        if not expected[original.measure].isfinite().all():
            raise CheckpointError(
                f"scores of the run in {str(run.folder)!r} are not all finite: its training must have diverged; "
                "train it again with a smaller --learning-rate"
            )
        otherwise = decided_otherwise(expected, found)
        if otherwise.any():
            num_otherwise += int(otherwise.sum())
            expected |= _under_gates(original, users, items, found)
        largest = max(largest, *_differences(expected, found, served).values())
    difference = Difference(largest, len(user), num_otherwise)
    _refuse_another(difference, run.config.run.strategy)
    return difference


def _refuse_another(difference: Difference, strategy: str) -> None:
    """Raise when a file is not what was exported; a value that is no number is as far away as can be."""
    if difference.num_otherwise > AT_THE_EDGE:
        raise PluginError(
            f"the exported {strategy!r} decides otherwise than the run for {difference.num_otherwise} of "
            f"{difference.num_users} users; nothing is left behind, serve the run with ftkit recommend"
        )
    if not difference.largest <= TOLERANCE:
        raise PluginError(
            f"the exported {strategy!r} differs from the run by {difference.largest:.2g} of the largest output, "
            f"{TOLERANCE:.0e} is allowed; nothing is left behind, serve the run with ftkit recommend"
        )


def users_to_ask(run: Run) -> tuple[Tensor, Tensor]:
    """Return ids ``(users,)`` and sequences ``(users, length)`` of as many users as `BATCHES` has.

    Random ones of the dataset, and `MADE_UP` ones with random items and ids beyond the dataset's.
    """
    length, dataset, random = run.config.data.max_length, run.dataset, generator(0, "users to compare")
    num_users = sum(BATCHES)
    known = torch.randint(1, dataset.num_users + 1, (num_users - MADE_UP,), generator=random)
    new = torch.randint(dataset.num_users + 1, 2**63 - 1, (MADE_UP,), generator=random)
    lengths = [0, min(1, length), length, *torch.randint(0, length + 1, (MADE_UP - 3,), generator=random).tolist()]
    made_up = made_up_sequence(MADE_UP, length, dataset.num_source_items, random, num_known=lengths)
    sequence = torch.cat([torch.from_numpy(dataset.sequences(known.numpy(), length)), made_up])
    order = torch.randperm(num_users, generator=random)
    return torch.cat([known, new])[order], sequence[order]


def decided_otherwise(expected: dict[str, Tensor], found: dict[str, Tensor]) -> Tensor:
    """Return whose gates differ by more than half, ``(users,)`` bool: who took another branch."""
    differ = [((expected[name] - found[name]).abs() > 0.5).any(dim=1) for name in GATES if name in expected]
    users = len(next(iter(found.values())))
    return torch.stack(differ).any(dim=0) if differ else torch.zeros(users, dtype=torch.bool)


@torch.no_grad()
def _under_gates(original: Served, user: Tensor, sequence: Tensor, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the run makes of users under the gates that the file chose."""
    gates = found["gates"]
    if "skipped" in found:
        gates = torch.stack([gates, 1 - gates - found["skipped"], found["skipped"]], dim=-1)
    strategy = original.strategy
    scores = strategy.task.scores(strategy.encode_with(users_only(user, sequence), gates).vectors)
    chosen = {name: found[name] for name in GATES if name in found}
    return {original.measure: scores if original.measure == "scores" else scores.softmax(dim=1), **chosen}


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor], served: Served) -> dict[str, float]:
    """Return how far each output is off, relative to its largest value.

    Of equal or nearly equal scores, either may be among the best: what counts is that the answers named have the scores
    told, and that these are the best ones'.
    """
    measure = served.measure
    pairs = {name: (expected[name], found[name]) for name in found if name in expected}
    if served.top is not None:
        best = expected[measure].topk(served.top, dim=1).values
        pairs[measure] = best, found[measure]
        pairs[served.answers] = expected[measure].gather(1, found[served.answers]), found[measure]
    return {name: relative_difference(*pair, at_least=1.0 if name in GATES else 1e-12) for name, pair in pairs.items()}

"""Merge a run into a plain backbone with a head: a folder from which fine-tuning can start, and that is served alone.

The folder is of the kind that pre-training writes. Beside ``backbone.…`` its ``model.safetensors`` holds the head, as
``task.head.…``, and ``model.json`` says which target items that scores; pre-training's own output layer is left out,
as it no longer fits. ``split.parquet`` keeps which target instances are in the weights, so that whoever starts from
them does not measure on these; ``earlier.parquet``, where the run has one, lets `ftkit evaluate` split as the run did.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_kit.config import SECTIONS
from finetune_kit.data.batch import Batch
from finetune_kit.data.earlier import SPLIT, Earlier
from finetune_kit.errors import CheckpointError, FinetuneKitError, OptionError, PluginError, one_line
from finetune_kit.evaluation.candidates import FILE as CANDIDATES
from finetune_kit.files import read_metrics
from finetune_kit.seeding import generator
from finetune_kit.strategy import Strategy
from finetune_kit.training.assemble import BACKBONE, TASK, Plain, Run, build_strategy, is_merged, target_facts
from finetune_kit.training.folders import write_base
from finetune_kit.tryout import made_up_sequence, relative_difference

NUM_USERS = 64
"""Made-up users on whom the merged model is compared with the run."""
TOLERANCE = 1e-4
"""How far scores may differ, relative to the largest: folded weights round otherwise."""


def merge(run: Run, folder: Path) -> dict[str, Any]:
    """Write a run as a plain backbone with its head; return its hash and how far the two differ.

    Args:
        run: The run, loaded.
        folder: What is written; nothing, or nothing that matters, must be there.

    Raises:
        PluginError: When the strategy can't be merged, or what it merged into computes something else.
        OptionError: When the run is merged already, or ``folder`` is the run's.
        CheckpointError: When the run's folder is not whole.
    """
    if is_merged(run.facts):
        raise OptionError(f"{str(run.folder)!r} is merged already")
    if folder.resolve() == run.folder.resolve():
        raise OptionError(f"--output {str(folder)!r} is the run itself; name another folder")
    plain = merged_strategy(run)
    difference = largest_difference(run.strategy, plain, run.config.data.max_length)
    if difference > TOLERANCE:
        raise PluginError(
            f"what {run.config.run.strategy!r} merged into computes something else: scores of random users differ by "
            f"{difference:.2g} of the largest, {TOLERANCE:.0e} is allowed; use the run as it is"
        )
    kept, parts, was = Earlier.read(run.folder), Earlier.read(run.folder, SPLIT), read_metrics(run.folder)
    if parts is None:
        raise CheckpointError(f"{str(run.folder)!r} is damaged: there is no {SPLIT}; copy or make the folder again")
    tensors = {f"{BACKBONE}{name}": tensor for name, tensor in plain.backbone.state_dict().items()}
    tensors |= {f"{TASK}{name}": tensor for name, tensor in plain.task.state_dict().items()}
    origin = {"strategy": run.config.run.strategy, "run": str(run.folder.resolve())}
    about = {"merged_from": {**origin, "hash": run.facts["hash"], "base": run.facts["base"]}}
    total = plain.num_parameters()[1]
    seconds = was.get("seconds", {})
    seconds = {**seconds, "pretrain": seconds.get("pretrain", 0.0) + seconds.get("finetune", 0.0)}
    metrics = {**was, "trainable_parameters": total, "total_parameters": total, "seconds": seconds}
    parts.write(folder, SPLIT)
    if kept is not None:
        kept.write(folder)
    if (run.folder / CANDIDATES).exists():
        shutil.copyfile(run.folder / CANDIDATES, folder / CANDIDATES)
    facts = {**target_facts(run.dataset), "about": about}
    digest = write_base(folder, run.config, run.dataset, tensors, metrics, facts, SECTIONS)
    return {"hash": digest, "difference": difference, **origin}


def merged_strategy(run: Run) -> Strategy:
    """Return a plain backbone with the run's head, its weights those that the run's strategy merges into.

    Raises:
        PluginError: When it can't be merged, or not into the backbone that the run's configuration names.
    """
    try:
        weights = run.strategy.merged_backbone().state_dict()
        sizes = run.dataset.num_source_items, run.dataset.num_target_items
        plain = build_strategy(run.config, *sizes, weights, Plain)
    except FinetuneKitError:
        raise
    except Exception as error:  # a third party's code may raise anything
        reason = one_line(error, with_type=True)
        raise PluginError(
            f"{run.config.run.strategy!r} failed to merge: {reason}; ftkit --traceback shows where"
        ) from error
    plain.task.load_state_dict(run.strategy.task.state_dict())
    return plain.eval()


@torch.no_grad()
def largest_difference(one: Strategy, other: Strategy, max_length: int) -> float:
    """Return how far the scores of two strategies differ on made-up users, relative to the largest.

    Args:
        one: A strategy in evaluation mode, on the CPU.
        other: Another, of the same items.
        max_length: Length of the users' sequences; they have 1 to as many items.
    """
    batch = made_up_users(one.backbone.num_items, max_length)
    return relative_difference(*(strategy.task.scores(strategy.encode(batch).vectors) for strategy in (one, other)))


def made_up_users(num_items: int, max_length: int) -> Batch:
    """Return `NUM_USERS` users with random items, and no instances."""
    sequence = made_up_sequence(NUM_USERS, max_length, num_items, generator(0, "made-up users"))
    return users_only(torch.arange(1, NUM_USERS + 1), sequence)


def users_only(user: Tensor, sequence: Tensor) -> Batch:
    """Return a batch of users ``(users,)`` with sequences ``(users, length)`` and no instances."""
    none = torch.empty(0, dtype=torch.int64)
    return Batch(user, sequence, none, none, none.view(0, 0))

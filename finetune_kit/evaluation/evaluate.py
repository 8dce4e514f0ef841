"""Evaluate a strategy, or any scorer, on instances of the target domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from finetune_kit.data.loading import evaluation_batches
from finetune_kit.evaluation.candidates import Candidates
from finetune_kit.evaluation.metrics import rank_metrics
from finetune_kit.evaluation.ranking import full_ranks, sampled_ranks
from finetune_kit.evaluation.references import Scorer
from finetune_kit.processes import here
from finetune_kit.sections import EvaluationOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from finetune_kit.data.batch import Batch
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.strategy import Encoded
    from finetune_kit.task import Task


class Encoder(Protocol):
    """What can be evaluated: a strategy, or what takes its place."""

    @property
    def task(self) -> Task:
        """What scores user vectors."""

    def eval(self) -> Any:
        """Switch to evaluation."""

    def encode(self, batch: Batch) -> Encoded:
        """Return the user vectors of a batch."""


@dataclass(frozen=True)
class Evaluation:
    """What came of evaluating on some instances; arrays run parallel.

    Args:
        instance: ``(instances,)``, indices of target instances.
        ranks: By protocol, ``(instances,)`` float, from 1.
        user: ``(users,)``, the users in order of appearance.
        gates: ``(users, blocks)`` the share of the fine-tuned branch, or None.
        probabilities: ``(users, blocks)`` the policy's probability of it, or None.
        skipped: ``(users, blocks)`` the share of a block that is skipped, or None.
    """

    instance: np.ndarray
    ranks: dict[str, np.ndarray]
    user: np.ndarray
    gates: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    skipped: np.ndarray | None = None

    def metrics(self, cutoffs: tuple[int, ...]) -> dict[str, dict[str, float]]:
        """Return ``{protocol: {"hr@5": …}}``."""
        return {protocol: rank_metrics(ranks, cutoffs) for protocol, ranks in self.ranks.items()}


@dataclass
class Evaluator:
    """Ranks the positives of given instances; candidates and known items are fixed when it is made.

    Args:
        dataset: The dataset.
        instances: Indices of the instances to evaluate, ``(n,)``.
        known: Indices of the training instances; their items are left out of full ranking.
        options: How to measure.
        max_length: Length that source sequences are padded or cut to.
        seed: Seed of the sampled candidates.
        stored: Candidates to rank among, of these instances and others; None draws them.
    """

    dataset: Dataset
    instances: np.ndarray
    known: np.ndarray
    options: EvaluationOptions
    max_length: int
    seed: int
    stored: Candidates | None = None
    _known_item: np.ndarray = field(init=False, repr=False)
    _known_user: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Order the instances by user and lay out the known items."""
        target = self.dataset.target
        self.instances = np.sort(self.instances)
        order = self.known[np.argsort(target.user[self.known], kind="stable")]
        self._known_user, self._known_item = target.user[order], target.item[order]

    @cached_property
    def candidates(self) -> Candidates:
        """What the sampled protocol ranks among: what is stored, or what is drawn of these instances."""
        if self.stored is not None:
            return self.stored
        target, num_candidates = self.dataset.target, self.options.num_candidates
        user, item = target.user[self.instances], target.item[self.instances]
        return Candidates.draw(user, item, self.dataset.num_target_items, num_candidates, self.seed)

    def of(self, instances: np.ndarray) -> Evaluator:
        """Return an evaluator like this one on other instances."""
        return replace(self, instances=instances)

    @torch.no_grad()
    def evaluate(self, strategy: Encoder, fabric: Fabric, protocols: tuple[str, ...] | None = None) -> Evaluation:
        """Return ranks, and gates where the strategy has them; leaves the strategy in evaluation mode."""
        strategy.eval()

        def parts() -> Iterator[tuple[np.ndarray, Batch, Tensor, Choices]]:
            batches = evaluation_batches(self.dataset, self.instances, self.options.batch_size, self.max_length)
            for instances, batch in batches:
                moved = batch.to(fabric.device)
                with fabric.autocast():
                    encoded = strategy.encode(moved)
                    scores = strategy.task.scores(encoded.vectors).float()
                yield instances, batch, scores, choices(encoded)

        return self._rank(parts(), self.options.protocols if protocols is None else protocols)

    def evaluate_scorer(self, scorer: Scorer) -> Evaluation:
        """Return the ranks that a simple ranking gives."""
        batches = evaluation_batches(self.dataset, self.instances, self.options.batch_size, self.max_length)
        parts = ((instances, batch, scorer(batch.user.numpy()), {}) for instances, batch in batches)
        return self._rank(parts, self.options.protocols)

    def _rank(
        self, parts: Iterator[tuple[np.ndarray, Batch, Tensor, Choices]], protocols: tuple[str, ...]
    ) -> Evaluation:
        """Return what came of all batches in their order, given those of this process."""
        own = [
            (part, batch.user.numpy(), self._ranks(part, batch, scores, protocols), chosen)
            for part, batch, scores, chosen in parts
        ]
        instances, users, ranks, chosen = zip(*here().collected(own), strict=True)
        joined = {name: torch.cat([part[name] for part in ranks]).double().numpy() for name in ranks[0]}
        return Evaluation(np.concatenate(instances), joined, np.concatenate(users), **joined_choices(chosen))

    def _ranks(self, part: np.ndarray, batch: Batch, scores: Tensor, protocols: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the ranks of a batch's positives by protocol, ``(instances,)`` each, on the CPU."""
        ranks = {}
        row, positive = batch.row.to(scores.device), batch.positive.to(scores.device)
        if "full" in protocols:
            row_known, item_known = self._known(batch.user.numpy())
            known = (row_known.to(scores.device), item_known.to(scores.device))
            ranks["full"] = full_ranks(scores, row, positive, known).cpu()
        if "sampled" in protocols:
            candidates = self.candidates.of(self.dataset.target.user[part], self.dataset.target.item[part])
            drawn = torch.from_numpy(candidates).to(scores.device)
            ranks["sampled"] = sampled_ranks(scores, row, positive, drawn).cpu()
        return {protocol: ranks[protocol] for protocol in protocols if protocol in ranks}

    def _known(self, user: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return row and item, ``(pairs,)`` each, of the training items of the given users (ascending ids)."""
        start = np.searchsorted(self._known_user, user, side="left")
        count = np.searchsorted(self._known_user, user, side="right") - start
        row = np.repeat(np.arange(len(user)), count)
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
        return torch.from_numpy(row), torch.from_numpy(self._known_item[place])


Choices = dict[str, Tensor]
"""What was chosen for each user of a batch, ``(users, blocks)`` each, on the CPU: gates, and what else is told."""


def choices(encoded: Encoded) -> Choices:
    """Return what a strategy tells of its policy's choices, as far as there are any."""
    told = {name: getattr(encoded, name) for name in ("gates", "probabilities", "skipped")}
    return {name: values.float().cpu() for name, values in told.items() if values is not None}


def joined_choices(parts: Sequence[Choices]) -> dict[str, np.ndarray | None]:
    """Return the choices of all batches by name; None where there were none."""
    names = ("gates", "probabilities", "skipped")
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: torch.cat(values).numpy() if values else None for name, values in found.items()}

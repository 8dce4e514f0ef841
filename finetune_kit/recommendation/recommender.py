"""Recommend target items to any users from their raw source items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.errors import CheckpointError, OptionError
from finetune_kit.memory import enough_memory
from finetune_kit.recommendation.answers import answers_of, best, in_few_digits
from finetune_kit.recommendation.history import History, Vocabularies, dense_ids
from finetune_kit.seeding import derive_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from finetune_kit.training.assemble import Run


Ranked = tuple[tuple[str, ...], tuple[float, ...]]
"""Raw answers of a user, best first, and their scores."""


@dataclass(frozen=True)
class Recommendation:
    """What one user is recommended, or why there is nothing.

    Args:
        user: Raw id.
        items: Raw ids of the best target items, best first; for a label's run the names of its classes.
        scores: Their scores, of which only order and differences mean something, or the classes' probabilities.
        note: Why ``items`` is empty; None where it is not.
        num_events: Source events in the history.
        num_unknown: Those among them of items that the run does not know; they were skipped.
    """

    user: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    note: str | None
    num_events: int
    num_unknown: int


class Recommender:
    """Scores all target items for users, known or new, with a finished run.

    A user whose raw id the dataset has is that user: a policy that draws per user draws what it drew in training.
    Others get a dense id beyond the dataset's, which is a hash of the raw id and so the same in every call.

    Args:
        run: The run, loaded on the dataset that it was trained on; its strategy is moved to the fabric's device.
        fabric: Device and precision.
        top: How many items each user gets, as long as there are so many.
        remove_seen: Leave out target items that the dataset has of a user, and those whose raw id stands in the
            user's history.
        separate_ids: A raw id means one item in the source and another in the target: with ``remove_seen``, leave
            out only what the dataset has.

    Raises:
        OptionError: For ``remove_seen`` with a label's run, or ``top`` below 1.
    """

    def __init__(
        self, run: Run, fabric: Fabric, *, top: int = 10, remove_seen: bool = False, separate_ids: bool = False
    ) -> None:
        self.answers = answers_of(run)
        if remove_seen and self.answers.is_label:
            raise OptionError("--remove-seen has no effect: this run predicts a profile label, not items; leave it out")
        if top < 1:
            raise OptionError(f"--top {top} is too few; at least 1")
        self.top = min(top, len(self.answers.raw))
        self._run, self._fabric, self._remove_seen = run, fabric, remove_seen
        self._raw_answers = np.array(self.answers.raw, dtype=object)
        self._max_length: int = run.config.data.max_length
        source, target = run.dataset.raw_source_items(), self.answers.raw if remove_seen and not separate_ids else []
        self.num_shared = len({*source}.intersection(target))
        """How many target items would be taken for the source items of the same raw id."""
        self._vocabularies = Vocabularies(source, target, self._max_length)
        self._known_users = dense_ids(run.dataset.raw_users())
        fabric.to_device(run.strategy.eval())

    def recommend(self, users: Iterable[str], sequences: Iterable[Iterable[str]]) -> list[Recommendation]:
        """Return what users are recommended, in their order; all are scored at once.

        Args:
            users: Raw ids.
            sequences: Per user the raw ids of source items, oldest first; only the latest ``data.max_length`` known
                ones count.

        Raises:
            CheckpointError: When the run's scores are not numbers.
        """
        return self._answer([self._vocabularies.encode(*pair) for pair in zip(users, sequences, strict=True)])

    def stream(self, histories: Iterable[tuple[str, Iterable[str]]], batch_size: int = 512) -> Iterator[Recommendation]:
        """Yield what users are recommended, in their order, ``batch_size`` of them scored at once.

        Args:
            histories: Pairs of raw user id and raw source items; each one's items are taken before the next is asked
                for, and no more than a batch is held.
            batch_size: At least 1.

        Raises:
            CheckpointError: When the run's scores are not numbers.
        """
        encoded = (self._vocabularies.encode(user, items) for user, items in histories)
        while some := list(islice(encoded, batch_size)):
            yield from self._answer(some)

    def _answer(self, histories: list[History]) -> list[Recommendation]:
        usable = [history for history in histories if history.fault is None]
        ranked = iter(self._rank(usable) if usable else [])
        nothing: Ranked = (), ()
        return [_recommendation(history, *(nothing if history.fault else next(ranked))) for history in histories]

    def _rank(self, histories: list[History]) -> Iterator[Ranked]:
        """Yield each user's answers and scores, best first."""
        user = np.array([self._dense(history.user) for history in histories], dtype=np.int64)
        scores = self._scores(user, histories)  # (users, answers)
        if self._remove_seen:
            row, column = (torch.from_numpy(part).to(scores.device) for part in self._seen(user, histories))
            scores[row, column] = -torch.inf
        values, columns = (part.cpu().numpy() for part in best(scores, self.top))
        num_ranked = (values > -np.inf).sum(axis=1).tolist()  # what is seen stands last
        texts = self._raw_answers[columns].tolist()
        for names, numbers, num in zip(texts, in_few_digits(values).tolist(), num_ranked, strict=True):
            yield tuple(names[:num]), tuple(numbers[:num])

    def _dense(self, user: str) -> int:
        if (known := self._known_users.get(user)) is not None:
            return known
        first = self._run.dataset.num_users + 1
        return first + derive_seed(0, "new user", user) % (2**63 - first)

    @torch.no_grad()
    @enough_memory("scoring", "lower --batch-size")
    def _scores(self, user: np.ndarray, histories: list[History]) -> Tensor:
        """Return the scores of all answers, ``(users, answers)``, or the classes' probabilities."""
        sequence = np.zeros((len(histories), self._max_length), dtype=np.int64)
        for row, history in enumerate(histories):
            sequence[row, -len(history.latest) :] = history.latest
        none = torch.empty(0, dtype=torch.int64)
        batch = Batch(torch.from_numpy(user), torch.from_numpy(sequence), none, none, none.view(0, 0))
        strategy = self._run.strategy
        with self._fabric.autocast():
            encoded = strategy.encode(batch.to(self._fabric.device))
            scores = strategy.task.scores(encoded.vectors).float()
        if not scores.isfinite().all():
            raise CheckpointError(
                f"scores of the run in {str(self._run.folder)!r} are not all finite: its training must have diverged; "
                "train it again with a smaller --learning-rate"
            )
        return scores.softmax(dim=1) if self.answers.is_label else scores

    def _seen(self, user: np.ndarray, histories: list[History]) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column, ``(pairs,)`` each, of the scores that take no part."""
        target = self._run.dataset.target
        first, last = (np.searchsorted(target.user, user, side=side) for side in ("left", "right"))
        items = [
            np.concatenate([target.item[begin:end], np.fromiter(history.seen, np.int64)])
            for history, begin, end in zip(histories, first, last, strict=True)
        ]
        return np.repeat(np.arange(len(items)), [len(some) for some in items]), np.concatenate(items) - 1


def _recommendation(history: History, items: tuple[str, ...], scores: tuple[float, ...]) -> Recommendation:
    note = None if items else history.fault or "all items are seen already"
    return Recommendation(history.user, items, scores, note, history.num_events, history.num_unknown)

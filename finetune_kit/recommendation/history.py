"""What of a user's raw source items counts, in dense ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

SOME = 1024
"""Items of a history that are looked up at once."""


@dataclass(frozen=True)
class History:
    """One user's history.

    Args:
        user: Raw id.
        latest: Dense ids of the latest known source items, oldest first; as many as the model takes.
        num_events: Events read.
        num_unknown: Those among them of items that the source vocabulary lacks.
        seen: Dense ids of the target items whose raw ids stand in the history.
    """

    user: str
    latest: Sequence[int]
    num_events: int
    num_unknown: int
    seen: frozenset[int]

    @property
    def fault(self) -> str | None:
        """Why nothing can be recommended from it; None where something can."""
        if self.latest:
            return None
        if not self.num_events:
            return "no item in the history"
        return f"no known item in the history ({self.num_unknown} unknown)"


class Vocabularies:
    """Encodes histories.

    Args:
        source: The source items' raw ids by dense id - 1.
        target: The target items' likewise, where it matters which of them a history holds; else none.
        max_length: How many of the latest known source items the model takes.
    """

    def __init__(self, source: Sequence[str], target: Sequence[str], max_length: int) -> None:
        self._source, self._target, self._max_length = dense_ids(source), dense_ids(target), max_length

    def encode(self, user: str, items: Iterable[str]) -> History:
        """Return the history of a user; holds little more of the items than the model takes."""
        latest: deque[int] = deque(maxlen=self._max_length)
        seen: set[int] = set()
        num_events = num_unknown = 0
        items = iter(items)
        while some := list(islice(items, SOME)):
            known = list(map(self._source.get, some))
            num_events += len(some)
            num_unknown += known.count(None)
            latest.extend(dense for dense in known if dense is not None)
            if self._target:
                seen.update(dense for dense in map(self._target.get, some) if dense is not None)
        return History(user, latest, num_events, num_unknown, frozenset(seen))


def dense_ids(raw: Sequence[str]) -> Mapping[str, int]:
    """Return the dense id, from 1, of each raw id."""
    return {text: dense for dense, text in enumerate(raw, 1)}

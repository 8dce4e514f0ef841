"""What of a user's raw source items counts, in dense ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


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
        """Return the history of a user; holds no more of the items than the model takes."""
        latest: deque[int] = deque(maxlen=self._max_length)
        seen: set[int] = set()
        num_events = num_unknown = 0
        for item in items:
            num_events += 1
            if (known := self._source.get(item)) is None:
                num_unknown += 1
            else:
                latest.append(known)
            if item in self._target:
                seen.add(self._target[item])
        return History(user, latest, num_events, num_unknown, frozenset(seen))


def dense_ids(raw: Sequence[str]) -> Mapping[str, int]:
    """Return the dense id, from 1, of each raw id."""
    return {text: dense for dense, text in enumerate(raw, 1)}

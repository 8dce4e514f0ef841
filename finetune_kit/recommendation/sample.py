"""A few users of a partition, so chosen that two partitions with the same users have the same few.

They are those whose ids' hashes are the smallest. A log that is cut by days, so that most users stand in several
partitions, is found by them; a user among millions who stands in two is not.
"""

from __future__ import annotations

import hashlib
import heapq

from finetune_kit.errors import DataError

MOST = 64
"""How many users of a partition are kept."""


class Sample:
    """Users with the smallest hashes among those that were added, each once."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str]] = []
        """A heap whose first has the largest hash, negated."""

    def add(self, user: str) -> None:
        """Look at one more user."""
        entry = -_hash(user), user
        if len(self._kept) < MOST:
            heapq.heappush(self._kept, entry)
        elif entry[0] > self._kept[0][0]:
            heapq.heapreplace(self._kept, entry)

    def users(self) -> tuple[str, ...]:
        """Return the users that are kept, sorted."""
        return tuple(sorted(user for _, user in self._kept))


class Owners:
    """Which partition has which of the users that are known."""

    def __init__(self) -> None:
        self._partition: dict[str, str] = {}

    def add(self, partition: str, users: tuple[str, ...]) -> None:
        """Take in the users of a partition.

        Raises:
            DataError: When another has one of them.
        """
        for user in users:
            other = self._partition.setdefault(user, partition)
            if other != partition:
                raise DataError(
                    f"user {user!r} has events in {min(other, partition)!r} and in {max(other, partition)!r}: two "
                    "answers, each from a part of the history; write all events of a user into one file"
                )


def _hash(user: str) -> int:
    return int.from_bytes(hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=8).digest(), "big")

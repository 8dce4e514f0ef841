"""Made-up event logs of any size, written a day at a time as partitioned Parquet: memory does not grow with them.

Users are active by a power law, items are looked at by Zipf's law with exponent 1. Each number is a hash of the event's
own number, so that one version of DuckDB makes the same log on every machine. There is nothing to learn in it but how
popular items are: it is for measuring time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

MIXED = "(hash(number * 8 + {}) / 18446744073709551616)"
"""A number in [0, 1), the event's draw of that number below 8. (Hashes of several columns are no independent draws.)"""


@dataclass(frozen=True)
class EventLog:
    """How large a log is.

    Args:
        events: Source events.
        users: Users; the busiest thousandth has about a hundredth of the events.
        items: Source items.
        target_items: Target items.
        target_users: Users with target events, one to three each.
        days: Partitions.
    """

    events: int
    users: int
    items: int
    target_items: int
    target_users: int
    days: int = 30

    @classmethod
    def of(cls, events: int) -> EventLog:
        """Return a log of about thirty events a user, in which the other sizes follow from their number."""
        items = max(100, events // 100)
        return cls(events, max(100, events // 30), items, max(50, items // 15), max(50, events // 600))

    def write(self, folder: Path) -> None:
        """Write ``source/day=…/part-0.parquet``, ``target/part-0.parquet``, and all events in ``histories.parquet``."""
        with duckdb.connect(config={"threads": 2, "memory_limit": "500MB"}) as connection:
            for day in range(self.days):
                part = folder / "source" / f"day=2026-01-{day + 1:02}" / "part-0.parquet"
                part.parent.mkdir(parents=True)
                connection.execute(f"COPY ({self._source(day)}) TO '{part}' (COMPRESSION zstd)")
            (folder / "target").mkdir()
            connection.execute(f"COPY ({self._target()}) TO '{folder}/target/part-0.parquet' (COMPRESSION zstd)")
            everything = f"SELECT * FROM read_parquet('{folder}/source/*/*.parquet', hive_partitioning = false)"
            connection.execute(f"COPY ({everything}) TO '{folder}/histories.parquet' (COMPRESSION zstd)")

    def _source(self, day: int) -> str:
        """Return the events of one day; no two have one time."""
        first, last = self.events * day // self.days, self.events * (day + 1) // self.days
        user = f"floor({self.users} * pow({MIXED.format(1)}, 1.5))"
        item = f"floor(exp({MIXED.format(2)} * ln({self.items} + 1)))"  # log-uniform: Zipf's law
        time = f"{_microseconds(day)} + number - {first}"
        columns = f"{user}::BIGINT AS user, {item}::BIGINT AS item, {time} AS time"
        return f"SELECT {columns} FROM (SELECT range AS number FROM range({first}, {last}))"

    def _target(self) -> str:
        """Return the target events, after all source events, each pair of user and item once."""
        user = f"number * {self.users // self.target_users}"
        item = f"floor(exp({MIXED.format('nth')} * ln({self.target_items} + 1)))"
        time = f"{_microseconds(self.days)} + nth"
        return (
            f"SELECT {user} AS user, {item}::BIGINT AS item, min({time}) AS time FROM "
            f"(SELECT range AS number FROM range({self.target_users})), (SELECT unnest([3, 4, 5]) AS nth) "
            f"WHERE nth = 3 OR {MIXED.format('nth + 2')} < 0.5 GROUP BY ALL ORDER BY ALL"
        )


def _microseconds(day: int) -> int:
    """Return when a day begins, counted from 2026-01-01, in microseconds since 1970."""
    return (1_767_225_600 + day * 86_400) * 1_000_000

"""Raw ids to dense ids, events into each user's order, and both into a dataset's Parquet files."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_kit.data.database import sql_text
from finetune_kit.data.flat import EVENTS_AT_ONCE, user_ranges
from finetune_kit.data.preparation import Preparation


def sort_events(preparation: Preparation, domain: str, limit: int | None) -> int:
    """Make ``_source_items`` (id, raw) and ``_source_sorted`` (user, item, time), or those of the target.

    Items are numbered twice: all those of the log, in the order of their raw ids, so that text is joined
    once; then those that kept users' events still have.

    Args:
        preparation: Holds the events, as views or tables of the domain's name, and ``_kept_users``.
        domain: ``"source"`` or ``"target"``.
        limit: Keep only that many events per user, the earliest; None keeps all.

    Returns:
        How many items the whole log has.
    """
    run = preparation.connection.execute
    run(
        f"CREATE TABLE _codes AS SELECT (row_number() OVER ())::INTEGER AS code, raw "
        f"FROM (SELECT DISTINCT item AS raw FROM {domain} ORDER BY raw)"
    )
    run(
        f"""CREATE TABLE _coded AS SELECT _kept_users.id AS user, code, time, tie FROM {domain}
        JOIN _kept_users ON {domain}.user = _kept_users.raw JOIN _codes ON {domain}.item = _codes.raw"""
    )
    if limit is not None:
        run(
            f"""CREATE OR REPLACE TABLE _coded AS SELECT * FROM _coded
            QUALIFY row_number() OVER (PARTITION BY user ORDER BY time, tie) <= {limit}"""
        )
    run(
        f"""CREATE TABLE _{domain}_items AS SELECT (row_number() OVER ())::INTEGER AS id, raw, code
        FROM (SELECT raw, code FROM _codes SEMI JOIN _coded USING (code) ORDER BY code)"""
    )
    run(
        f"""CREATE TABLE _{domain}_sorted AS SELECT user, id AS item, time FROM _coded
        JOIN _{domain}_items USING (code) ORDER BY user, time, tie"""
    )
    num_items = preparation.count("SELECT count(*) FROM _codes")
    run("DROP TABLE _codes; DROP TABLE _coded")
    return num_items


def write_tables(preparation: Preparation) -> dict[str, int]:
    """Write all Parquet files of the dataset; return its counts."""
    _write_source(preparation)
    target = (
        "SELECT user, item, (row_number() OVER (PARTITION BY user ORDER BY row) - 1)::INTEGER AS position "
        "FROM (SELECT rowid AS row, user, item FROM _target_sorted) ORDER BY user, position"
    )
    _copy(preparation, target, "target")
    _copy(preparation, "SELECT id, raw FROM _kept_users ORDER BY id", "users")
    for domain in ("source", "target"):
        _copy(preparation, f"SELECT id, raw FROM _{domain}_items ORDER BY id", f"{domain}_items")
    if preparation.has_table("labels"):
        columns = "_kept_users.id AS user, labels.* EXCLUDE (user)"
        labels = f"SELECT {columns} FROM labels JOIN _kept_users ON labels.user = _kept_users.raw ORDER BY 1"
        _copy(preparation, labels, "labels")
    tables = {
        "users": "_kept_users",
        "source_items": "_source_items",
        "target_items": "_target_items",
        "source_events": "_source_sorted",
        "target_events": "_target_sorted",
    }
    return {key: preparation.count(f"SELECT count(*) FROM {table}") for key, table in tables.items()}


def _write_source(preparation: Preparation) -> None:
    """Write one row per user with the list of items; lists are built for a range of users at a time."""
    run = preparation.connection.execute
    lengths = run("SELECT count(*) AS length FROM _source_sorted GROUP BY user ORDER BY user").fetchnumpy()["length"]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    run("CREATE TABLE _source_lists (user INTEGER, items INTEGER[])")
    for first, last in user_ranges(lengths):
        run(
            f"""INSERT INTO _source_lists SELECT user, list(item ORDER BY row)
            FROM (SELECT rowid AS row, user, item FROM _source_sorted
                WHERE rowid >= {offsets[first]} AND rowid < {offsets[last]})
            GROUP BY user ORDER BY user"""
        )
    rows = int(np.clip(EVENTS_AT_ONCE // max(1, lengths.mean()), 2_048, 122_880))
    _copy(
        preparation,
        "SELECT user, items FROM _source_lists ORDER BY rowid",
        "source",
        f", ROW_GROUP_SIZE {rows}",
    )


def _copy(preparation: Preparation, query: str, name: str, more: str = "") -> None:
    path = sql_text(preparation.folder / f"{name}.parquet")
    preparation.connection.execute(f"COPY ({query}) TO {path} (FORMAT parquet, COMPRESSION zstd{more})")


def time_facts(preparation: Preparation) -> dict[str, Any]:
    """Return what the times of kept events say: how many are equal, how far the domains overlap.

    Returns:
        ``equal``: share of source events with the time of the same user's event before; ``after_target``:
        share of source events later than the same user's first target event, among users who have one (None
        if nobody has).
    """
    equal, events = preparation.connection.execute(
        """SELECT count(*) FILTER (again), count(*) FROM (
            SELECT user = lag(user) OVER () AND time = lag(time) OVER () AS again FROM _source_sorted)"""
    ).fetchall()[0]
    later, compared = preparation.connection.execute(
        """SELECT count(*) FILTER (time > first), count(*) FROM _source_sorted
        JOIN (SELECT user, min(time) AS first FROM _target_sorted GROUP BY user) USING (user)"""
    ).fetchall()[0]
    return {"equal": equal / events, "after_target": later / compared if compared else None}

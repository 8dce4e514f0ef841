"""From clean events to a dataset folder: the one path by which every reader writes one.

Everything runs in DuckDB on disk and in ranges of users, so that a log larger than memory is prepared in
bounded memory; see `finetune_kit.data.preparation`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from finetune_kit import __version__
from finetune_kit.data.encoding import sort_events, time_facts, write_tables
from finetune_kit.data.flat import write_flat
from finetune_kit.data.folder import FORMAT_VERSION, MANIFEST, describe_file
from finetune_kit.data.inputs import describe_inputs
from finetune_kit.data.places import Place
from finetune_kit.data.preparation import Preparation, logger
from finetune_kit.data.remote import File
from finetune_kit.data.vocabulary import vocabulary_hash
from finetune_kit.errors import DataError

Keep = Literal["target", "labels", "all"]
"""Which users stay: those with a target event, those with a target event or a label, or all."""

_WANTED = {
    "target": "target_events IS NOT NULL",
    "labels": "target_events IS NOT NULL OR has_labels IS NOT NULL",
    "all": "true",
}
"""The same over the joined counts, where what a user lacks is null."""


def write_dataset(
    preparation: Preparation,
    *,
    options: Mapping[str, Any],
    inputs: Iterable[File | Place],
    max_target: int | None = None,
    min_source: int = 1,
    keep: Keep = "target",
    has_times: bool = True,
) -> None:
    """Write the files of a dataset, named after its folder, from the preparation's tables.

    The tables or views read, all without nulls: ``source`` and ``target`` with the columns ``user`` and
    ``item`` (VARCHAR), ``time`` (a number) and ``tie`` (a number: the order of a user's events of one time);
    optional ``labels`` with ``user`` and one column per profile label (VARCHAR; null for unknown). Names that
    begin with an underscore are taken.

    Args:
        preparation: Holds the tables, and the folder that is written.
        options: The reader's options, recorded.
        inputs: The files that it is made of, recorded as `describe_inputs` tells.
        max_target: Keep at most that many target events per user, the earliest; None keeps all.
        min_source: Leave out users with fewer source events, at least 1.
        keep: Which users stay, apart from ``min_source``.
        has_times: Whether ``time`` is a time; False when it is only an order.

    Raises:
        DataError: When no user is left.
    """
    logger.info("counting events per user")
    facts = _select_users(preparation, min_source, keep)
    for domain, limit in (("source", None), ("target", max_target)):
        logger.info("sorting %s events", domain)
        facts[f"{domain}_items"] = sort_events(preparation, domain, limit)
    facts["times"] = time_facts(preparation) if has_times else None
    logger.info("writing the dataset")
    counts = write_tables(preparation)
    facts["beyond_max_target"] = facts.pop("wanted_target_events") - counts["target_events"]
    files = {path.name: describe_file(path) for path in sorted(preparation.folder.glob("*.parquet"))}
    write_flat(preparation.folder, files["source.parquet"]["sha256"], preparation.connection)
    manifest = {
        "format_version": FORMAT_VERSION,
        "written_by": __version__,
        "name": preparation.folder.name,
        "counts": counts,
        "options": dict(options),
        "inputs": describe_inputs(inputs),
        "files": files,
        "vocabularies": {
            domain: vocabulary_hash(preparation.folder / f"{domain}_items.parquet", preparation.connection)
            for domain in ("source", "target")
        },
        "raw": facts,
        "warnings": preparation.warnings,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (preparation.folder / MANIFEST).write_text(text, encoding="utf-8")


def _select_users(preparation: Preparation, min_source: int, keep: Keep) -> dict[str, Any]:
    """Make ``_kept_users`` (id, raw); return what there was and, per reason, what was left out."""
    connection = preparation.connection
    labels = (
        "SELECT DISTINCT user, true AS has_labels FROM labels"
        if preparation.has_table("labels")
        else ("SELECT NULL::VARCHAR AS user, false AS has_labels WHERE false")
    )
    connection.execute(
        f"""CREATE TABLE _people AS
        SELECT user, coalesce(source_events, 0) AS source_events, coalesce(target_events, 0) AS target_events,
            CASE WHEN coalesce(source_events, 0) = 0 THEN 'no source event'
                WHEN source_events < {min_source} THEN 'fewer than {min_source} source events'
                WHEN NOT ({_WANTED[keep]}) THEN 'no target event' END AS reason
        FROM (SELECT user, count(*) AS source_events FROM source GROUP BY user)
        FULL JOIN (SELECT user, count(*) AS target_events FROM target GROUP BY user) USING (user)
        LEFT JOIN ({labels}) USING (user)"""
    )
    connection.execute(
        "CREATE TABLE _kept_users AS SELECT (row_number() OVER ())::INTEGER AS id, raw "
        "FROM (SELECT user AS raw FROM _people WHERE reason IS NULL ORDER BY user)"
    )
    facts = _raw_facts(preparation)
    if not preparation.count("SELECT count(*) FROM _kept_users"):
        reasons = "; ".join(f"{out['users']:,} have {out['reason']}" for out in facts["left_out"]) or "there are none"
        raise DataError(f"no user is left for the dataset: {reasons}")
    return facts


def _raw_facts(preparation: Preparation) -> dict[str, Any]:
    """Return counts before anyone was left out, and who was left out why."""
    facts: dict[str, Any] = {
        f"{domain}_{what}": preparation.count(query)
        for domain in ("source", "target")
        for what, query in {
            "users": f"SELECT count(*) FROM _people WHERE {domain}_events > 0",
            "events": f"SELECT sum({domain}_events) FROM _people",
        }.items()
    }
    facts["common_users"] = preparation.count(
        "SELECT count(*) FROM _people WHERE source_events > 0 AND target_events > 0"
    )
    left_out = preparation.connection.execute(
        """SELECT reason, count(*), sum(source_events), sum(target_events) FROM _people
        WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"""
    ).fetchall()
    facts["wanted_target_events"] = preparation.count("SELECT sum(target_events) FROM _people WHERE reason IS NULL")
    keys = ("reason", "users", "source_events", "target_events")
    facts["left_out"] = [dict(zip(keys, (row[0], *map(int, row[1:])), strict=True)) for row in left_out]
    return facts

"""Recommendations into a file, one after another: nothing but a few rows is held.

Parquet and delimited text have a row per user and rank, JSON lines a line per user; all say the same.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

from finetune_kit.data.database import sql_text
from finetune_kit.recommendation.answers import Answers
from finetune_kit.recommendation.formats import delimiter, file_kind
from finetune_kit.recommendation.recommender import Recommendation
from finetune_kit.recommendation.workshop import Workshop

Write = Callable[[Recommendation], None]
ROWS_AT_ONCE = 50_000
NO_RANK = 0
"""The rank, before it becomes null, of a user's only row where there is nothing to recommend."""


def writing(path: Path, partial: Path, answers: Answers, workshop: Workshop) -> AbstractContextManager[Write]:
    """Give a function that writes one recommendation, in the format that ``path`` ends in.

    Args:
        path: What the file is going to be called.
        partial: Where it is written.
        answers: What is recommended.
        workshop: Collects the rows of a Parquet file.
    """
    kind = file_kind(path, "--output")
    if kind == "parquet":
        return _parquet(partial, answers, workshop)
    return _json_lines(path, partial, answers) if kind == "json" else _delimited(path, partial, answers)


def _rows(recommendation: Recommendation) -> Iterator[tuple[int, str, float]]:
    """Yield rank, item and score; one row of nothing where there is nothing."""
    if not recommendation.items:
        yield NO_RANK, "", 0.0
    yield from zip(range(1, len(recommendation.items) + 1), recommendation.items, recommendation.scores, strict=True)


@contextmanager
def _delimited(path: Path, partial: Path, answers: Answers) -> Iterator[Write]:
    with _text(path, partial) as file:
        writer = csv.writer(file, delimiter=delimiter(path), lineterminator="\n")
        writer.writerow(["user", "rank", answers.noun, answers.measure, "note"])

        def write(recommendation: Recommendation) -> None:
            for rank, item, score in _rows(recommendation):
                row = [rank, item, score] if rank != NO_RANK else ["", "", ""]
                writer.writerow([recommendation.user, *row, recommendation.note or ""])

        yield write


@contextmanager
def _json_lines(path: Path, partial: Path, answers: Answers) -> Iterator[Write]:
    with _text(path, partial) as file:

        def write(recommendation: Recommendation) -> None:
            pairs = zip(recommendation.items, recommendation.scores, strict=True)
            ranked = [{answers.noun: item, answers.measure: score} for item, score in pairs]
            row = {"user": recommendation.user, answers.nouns: ranked, "note": recommendation.note}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _text(path: Path, partial: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text for writing, packed where its name says so; equal content makes equal bytes."""
    if path.suffix != ".gz":
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        file = io.TextIOWrapper(cast("IO[bytes]", packed), encoding="utf-8", newline="")
        yield file
        file.flush()
        file.detach()


@contextmanager
def _parquet(partial: Path, answers: Answers, workshop: Workshop) -> Iterator[Write]:
    """Collect rows in the workshop's database, then copy them in their order."""
    connection = workshop.connection.cursor()
    columns = f"user VARCHAR, rank INTEGER, {answers.noun} VARCHAR, {answers.measure} FLOAT, note VARCHAR"
    connection.execute(f"CREATE TABLE answers ({columns})")
    rows: list[tuple[str, int, str, float, str]] = []

    def store() -> None:
        user, rank, item, score, note = zip(*rows, strict=True)
        part = {"user": _texts(user), "rank": np.array(rank), "item": _texts(item), "note": _texts(note)}
        connection.register("part", {**part, "score": np.array(score, dtype=np.float32)})
        connection.execute(
            f"""INSERT INTO answers SELECT user, nullif(rank, {NO_RANK}),
            CASE WHEN rank != {NO_RANK} THEN item END, CASE WHEN rank != {NO_RANK} THEN score END, nullif(note, '')
            FROM part"""
        )
        connection.unregister("part")
        rows.clear()

    def write(recommendation: Recommendation) -> None:
        note = recommendation.note or ""
        rows.extend((recommendation.user, *row, note) for row in _rows(recommendation))
        if len(rows) >= ROWS_AT_ONCE:
            store()

    yield write
    if rows:
        store()
    connection.execute(f"COPY (FROM answers) TO {sql_text(partial)} (FORMAT parquet, COMPRESSION zstd)")


def _texts(values: tuple[str, ...]) -> np.ndarray:
    return np.array(values, dtype=object)

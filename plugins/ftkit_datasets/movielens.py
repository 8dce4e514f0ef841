"""MovieLens as two domains: one genre's films are the target, all other films the source.

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 2015,
https://grouplens.org/datasets/movielens/1m/. The data may not be redistributed; this reads your copy:
``ratings.dat``, ``movies.dat`` and ``users.dat`` as published, or RecBole's ``.inter``, ``.item``, ``.user``.
"""

from __future__ import annotations

import errno
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from finetune_kit.data.checks import settle, settle_duplicates, settle_missing, settle_times
from finetune_kit.data.database import sql_text
from finetune_kit.data.preparation import DEFAULT_MEMORY_LIMIT, OnBad, Preparation, logger, preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.data.reader import DatasetReader
from finetune_kit.data.tables import RawTable, append_text
from finetune_kit.data.text import TextFormat, header_names
from finetune_kit.errors import DataError, FinetuneKitError, OptionError, did_you_mean, one_line
from finetune_kit.files import write_text
from finetune_kit.options import Options

NUMBER = "regexp_extract(user, '[0-9]+$')"
"""A user's number, in which both formats agree."""
TIE_SEED = 20210217
"""Orders a user's ratings of one second: half of all have the second of the one before."""
HARMLESS, MOST_PACKED = 2**26, 50
"""Bytes that a member of an archive may unpack to, and how many more per packed byte; MovieLens has 4."""
OFFICIAL = {"ratings": "ratings.dat", "films": "movies.dat", "people": "users.dat"}
ATOMIC = {"ratings": ".inter", "films": ".item", "people": ".user"}
OFFICIAL_COLUMNS = {
    "ratings": ("user", "item", "rating", "time"),
    "films": ("item", "title", "genres"),
    "people": ("user", "gender", "age", "occupation", "zip"),
}
ATOMIC_COLUMNS = {
    "ratings": {"user": ("user_id",), "item": ("item_id",), "time": ("timestamp",)},
    "films": {"item": ("item_id",), "genres": ("genre", "class")},
    "people": {"user": ("user_id",), "gender": ("gender",), "age": ("age",)},
}


class MovieLensOptions(Options):
    """Options of `MovieLens`."""

    path: str
    """A folder, zip or wheel with MovieLens-1M's three `.dat` files, or with RecBole's atomic files of it."""
    genre: str = "Horror"
    """Films of this genre are the target; all others are the source."""
    max_target: int | None = Field(default=5, ge=1)
    """Keep at most that many target ratings per user, the earliest; none keeps all."""
    min_source: int = Field(default=10, ge=1)
    """Leave out users with fewer source ratings."""
    on_bad: OnBad = "refuse"
    """What becomes of rows that can't be used: refuse the file, or drop them with a warning."""
    memory_limit: str = DEFAULT_MEMORY_LIMIT
    """How much memory preparing may take, about; what does not fit is sorted on disk beside the output."""


class Found(NamedTuple):
    """The three files of a copy, by role, and whether they are RecBole's."""

    files: dict[str, Path]
    is_atomic: bool


class MovieLens(DatasetReader):
    """Reads MovieLens; a user's ratings of one second stand in an order drawn from user and film."""

    Options = MovieLensOptions
    positional: ClassVar[str | None] = "path"
    options: MovieLensOptions

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Write two ratings of one made-up user into a folder as published, and return the options that read them."""
        lines = {
            "movies.dat": ["1::A (1995)::Animation", "2::B (1990)::Horror"],
            "users.dat": ["1::F::25::4::12345"],
            "ratings.dat": ["1::1::5::40", "1::2::5::60"],
        }
        for name, rows in lines.items():
            write_text(folder / name, "".join(f"{row}\n" for row in rows))
        return {"path": str(folder), "min_source": 1}

    def prepare(self, output: Path) -> None:
        """Write the dataset folder at ``output``.

        Raises:
            DataError: For no such copy, or one that can't be used as it is.
            OptionError: For a genre that no film has.
        """
        options = self.options
        with preparing(output, options.memory_limit, options.on_bad) as preparation:
            found = find_copy(Path(options.path).expanduser(), preparation.scratch)
            logger.info("reading MovieLens")
            tables = {role: _load(preparation, role, found) for role in OFFICIAL}
            time = _check(tables)
            _make_films(preparation, options.genre, found.is_atomic)
            _make_logs(preparation, time)
            write_dataset(
                preparation,
                options=options.model_dump(),
                inputs=found.files.values(),
                max_target=options.max_target,
                min_source=options.min_source,
            )


def find_copy(path: Path, scratch: Path) -> Found:
    """Return the three files in a folder or, unpacked into ``scratch``, in a zip archive or wheel.

    Raises:
        DataError: For no such path, no such files in it, or several copies.
    """
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    elif path.is_file() and zipfile.is_zipfile(path):
        with _opened(path) as archive:
            names = archive.namelist()
    elif path.exists():
        raise DataError(f"{path} is neither a folder nor a zip archive")
    else:
        raise DataError(f"no MovieLens copy at {path}; give the folder or zip that holds ratings.dat or ml-1m.inter")
    copies = _official(names) + _atomic(names)
    if not copies:
        raise DataError(f"{path} holds neither {', '.join(OFFICIAL.values())} nor files *{', *'.join(ATOMIC.values())}")
    if len(copies) > 1:
        raise DataError(
            f"{path} holds several copies: {', '.join(members['ratings'] for members, _ in copies)}; give one"
        )
    members, is_atomic = copies[0]
    if path.is_dir():
        return Found({role: path / name for role, name in members.items()}, is_atomic)
    return Found(_unpack(path, members, scratch), is_atomic)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; what is damaged or encrypted in it, or packed in a way that Python lacks, is one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, FinetuneKitError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise  # EINVAL is a place before the file's beginning, which a damaged archive names
        raise DataError(f"{path} can't be unpacked: {one_line(error)}; give another copy, or its folder") from error


def _official(names: list[str]) -> list[tuple[dict[str, str], bool]]:
    stems = [name.removesuffix(OFFICIAL["ratings"]) for name in names if Path(name).name == OFFICIAL["ratings"]]
    copies = [{role: stem + file for role, file in OFFICIAL.items()} for stem in sorted(stems)]
    return [(copy, False) for copy in copies if set(copy.values()) <= set(names)]


def _atomic(names: list[str]) -> list[tuple[dict[str, str], bool]]:
    stems = [name.removesuffix(ATOMIC["ratings"]) for name in names if name.endswith(ATOMIC["ratings"])]
    copies = [{role: stem + suffix for role, suffix in ATOMIC.items()} for stem in sorted(stems)]
    return [(copy, True) for copy in copies if set(copy.values()) <= set(names)]


def _unpack(path: Path, members: dict[str, str], scratch: Path) -> dict[str, Path]:
    files = {}
    with _opened(path) as archive:
        for role, name in members.items():
            _refuse_bomb(path, archive.getinfo(name))
            files[role] = scratch / Path(name).name
            with archive.open(name) as member, files[role].open("wb") as file:
                shutil.copyfileobj(member, file)
    return files


def _refuse_bomb(path: Path, member: zipfile.ZipInfo) -> None:
    """Raise for a member that says it unpacks to far more than text does; what says less is cut there when read."""
    if member.file_size > HARMLESS + MOST_PACKED * member.compress_size:
        raise DataError(
            f"{path}: {member.filename} unpacks from {member.compress_size:,} to {member.file_size:,} bytes, which "
            "text does not; unpack it yourself if you trust it, and give the folder"
        )


def _load(preparation: Preparation, role: str, found: Found) -> RawTable:
    """Make the view ``ratings``, ``films`` or ``people`` with the columns both formats share."""
    path = found.files[role]
    wanted = list(ATOMIC_COLUMNS[role])
    if found.is_atomic:
        text = TextFormat("\t", quote="")
        columns = {name: _typed(path, header_names(path, text), ATOMIC_COLUMNS[role][name]) for name in wanted}
    else:
        text = TextFormat("::", OFFICIAL_COLUMNS[role], quote="", encoding="latin-1")
        columns = {name: name for name in (*wanted, *(["title"] if role == "films" else []))}
    table = RawTable(preparation, role, tuple(columns))
    append_text(table, path, text, columns)
    return table


def _typed(path: Path, header: tuple[str, ...], names: tuple[str, ...]) -> str:
    """Return the column of an atomic file, e.g. ``timestamp:float``, for its name without the type."""
    for column in header:
        if column.partition(":")[0] in names:
            return column
    raise DataError(f"{path} has no column {' or '.join(map(repr, names))}. Columns: {', '.join(header)}")


def _check(tables: dict[str, RawTable]) -> str:
    """Settle rows that can't be used; return how to read the ratings' times."""
    for role, keys in {"films": ("item",), "people": ("user",), "ratings": ("user", "item")}.items():
        for key in keys:
            settle_missing(tables[role], key)
        settle_duplicates(tables[role], keys, f"a {' and '.join(keys)}")
    for role in ("ratings", "people"):
        odd = f"SELECT row, user AS value FROM {role} WHERE try_cast({NUMBER} AS BIGINT) IS NULL"
        settle(tables[role], odd, "user {value} does not end in a number, or in one too large")
        other = f"SELECT {NUMBER}::BIGINT AS number FROM {role} GROUP BY number HAVING count(DISTINCT user) > 1"
        alike = f"SELECT row, user AS value FROM {role} WHERE {NUMBER}::BIGINT IN ({other})"
        settle(tables[role], alike, "user {value} and another end in the same number, which would make them one")
    for role, key, other in (("ratings", "item", "films"), ("people", "user", "ratings")):
        unknown = f"SELECT row, {key} AS value FROM {role} WHERE {key} NOT IN (SELECT {key} FROM {other})"
        settle(tables[role], unknown, f"{key} {{value}} is not in {tables[other].parts[0][0].name}")
    return settle_times(tables["ratings"])[0]


def _make_films(preparation: Preparation, genre: str, is_atomic: bool) -> None:
    """Make ``catalogue``: films by file id, with the raw id that the dataset has and whether they are target.

    A title, where all titles differ, is the raw id: so both formats of MovieLens-1M give the same dataset.

    Raises:
        OptionError: For a genre that no film has.
    """
    run = preparation.connection.execute
    separator = " " if is_atomic else "|"
    titles_differ = not is_atomic and preparation.count("SELECT count(DISTINCT title) = count(*) FROM films")
    run(
        f"CREATE TABLE catalogue AS SELECT item, {'title' if titles_differ else 'item'} AS raw, "
        f"string_split(coalesce(genres, ''), '{separator}') AS genres FROM films"
    )
    genres = [
        name for (name,) in run("SELECT DISTINCT unnest(genres) AS g FROM catalogue ORDER BY g").fetchall() if name
    ]
    if genre not in genres:
        raise OptionError(f"no film has the genre {genre!r}.{did_you_mean(genre, genres)} Genres: {', '.join(genres)}")
    run("ALTER TABLE catalogue ADD COLUMN is_target BOOLEAN DEFAULT false")
    run(f"UPDATE catalogue SET is_target = list_contains(genres, {sql_text(genre)})")


def _make_logs(preparation: Preparation, time: str) -> None:
    """Make the views ``source``, ``target`` and ``labels``."""
    run = preparation.connection.execute
    run(
        f"""CREATE TABLE rated AS
        SELECT row, {NUMBER}::BIGINT AS user, raw, {time} AS time, is_target,
        dense_rank() OVER (ORDER BY raw) AS rank FROM ratings JOIN catalogue USING (item)"""
    )
    columns = run("SELECT user, rank FROM rated ORDER BY row").fetchnumpy()
    ties = {"tie": mix(columns["user"], columns["rank"])}
    preparation.connection.register("ties", ties)
    run(
        """CREATE TABLE tied AS SELECT user::VARCHAR AS user, raw AS item, time, tie, is_target
        FROM (SELECT * FROM rated ORDER BY row) POSITIONAL JOIN ties"""
    )
    run("CREATE VIEW source AS SELECT user, item, time, tie FROM tied WHERE NOT is_target")
    run("CREATE VIEW target AS SELECT user, item, time, tie FROM tied WHERE is_target")
    run(f"CREATE VIEW labels AS SELECT {NUMBER}::BIGINT::VARCHAR AS user, gender, age FROM people")


def mix(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return SplitMix64 of (user, item): an order of ties that no file's order enters.

    Args:
        user: Users' numbers, ``(n,)``.
        item: Ranks, from 1, of the rated films' raw ids, ``(n,)``.

    Returns:
        ``(n,)`` uint64.
    """
    with np.errstate(over="ignore"):  # multiplication modulo 2**64 is meant
        x = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += item.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03) + np.uint64(TIE_SEED)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))

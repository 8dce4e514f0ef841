"""What a reader under test is, and how what it read is accounted for."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutations import Mutation

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.inspect import inspect

USERS = ["ann", "bob", "Zoë", "18446744073709551617", "x,y", "007", "7"]
ITEMS = ["a", "b", "ü", "1", "01", str(2**63)]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Args:
        name: Counted under it.
        write: Writes a valid input into a folder; returns the files that may be spoiled.
        read: Reads what is in the folder, and asserts that nothing of it was lost without a word.
        mutations: How its files are spoiled.
        weight: How often it is chosen.
    """

    name: str
    write: Callable[[Path, Random], list[Path]]
    read: Callable[[Path, Random], None]
    mutations: list[Mutation]
    weight: int = 1


def dropped(manifest: dict[str, Any], path: Path) -> int:
    """Return how many rows of a file were told as dropped."""
    found = [
        re.match(r"dropped ([\d,]+) rows?, the first at (.*?), (line|row) ", text) for text in manifest["warnings"]
    ]
    return sum(int(one[1].replace(",", "")) for one in found if one and one[2] == str(path))


def records(path: Path, delimiter: str) -> list[list[str]] | None:
    """Return the records of a text table as Python's own reader sees them, blank lines left out; None if it can't."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except Exception:  # no text, or not so that two readers must agree
        return None
    is_plain = rows and all(len(row) == len(rows[0]) for row in rows) and "\x00" not in text
    return rows[1:] if is_plain else None


def header_of(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(row for row in csv.reader(file) if row)


def look_into(folder: Path) -> Dataset:
    """Open a dataset and read everything in it."""
    dataset = Dataset.open(folder)
    facts = inspect(dataset)
    users = np.arange(1, dataset.num_users + 1)
    longest = dataset.sequences(users, 7)
    names = dataset.raw_users(), dataset.raw_source_items(), dataset.raw_target_items()
    sizes = dataset.num_users, dataset.num_source_items, dataset.num_target_items
    assert tuple(map(len, names)) == sizes, f"vocabularies of {tuple(map(len, names))} for counts {sizes}"
    assert longest.min() >= 0
    assert longest.max() <= dataset.num_source_items, "an item that is not in the vocabulary"
    for ids, most in ((dataset.target.user, sizes[0]), (dataset.target.item, sizes[2])):
        assert not len(ids) or (ids.min() >= 1 and ids.max() <= most), "a target that is not in the vocabulary"
    json.dumps(facts)
    return dataset

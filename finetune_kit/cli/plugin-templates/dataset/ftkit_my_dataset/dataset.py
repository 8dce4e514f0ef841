"""MyDataset: say here which data it reads, who published them, where, and under which terms.

Describe the format as it is in the files, so that nobody has to open one:

    {"user": "ann", "source": ["x", "y"], "target": ["p"]}

A line is a user. Both lists are in the order of time, oldest first; nothing says when an event was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from finetune_kit import DatasetReader, Options
from finetune_kit.data.preparation import Preparation, preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.errors import DataError

DOMAINS = ("source", "target")


class MyDatasetOptions(Options):
    """Options of `MyDataset`."""

    file: str
    """The file: a JSON object per line."""
    on_bad: Literal["refuse", "drop"] = "refuse"
    """What becomes of lines that can't be used: refuse the file, or drop them with a warning."""


class MyDataset(DatasetReader):
    """Reads one user per line; a list's order is its only time."""

    Options = MyDatasetOptions
    positional: ClassVar[str | None] = "file"
    options: MyDatasetOptions

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Write the lines of two users into a folder, and return the options that read them."""
        lines = [
            {"user": "ann", "source": ["x", "y", "x"], "target": ["p"]},
            {"user": "bob", "source": ["z"], "target": ["q", "p"]},
        ]
        (folder / "users.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        return {"file": str(folder / "users.jsonl")}

    def prepare(self, output: Path) -> None:
        """Write the dataset folder at ``output``.

        Raises:
            DataError: For a file that can't be used as it is.
        """
        path = Path(self.options.file).expanduser()
        with preparing(output, on_bad=self.options.on_bad) as preparation:
            for domain in DOMAINS:
                preparation.connection.execute(
                    f'CREATE TABLE {domain} ("user" VARCHAR, item VARCHAR, time BIGINT, tie BIGINT)'
                )
            for user in _users(path, preparation):
                for domain in DOMAINS:
                    events = [(user["user"], item, time) for time, item in enumerate(user[domain])]
                    if events:
                        preparation.connection.executemany(f"INSERT INTO {domain} VALUES (?, ?, ?, 0)", events)
            write_dataset(preparation, options=self.options.model_dump(), inputs=[path], has_times=False)


def _users(path: Path, preparation: Preparation) -> Iterator[dict[str, Any]]:
    """Yield what each line of the file says; what can't be used is refused or dropped, as the options say."""
    seen: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as text: {error}; give a file with a JSON object per line") from error
    for number, line in enumerate(lines, 1):
        if fault := _fault(line, seen):
            preparation.bad(f"{path}, line {number}", fault, rows=1)
        else:
            user = json.loads(line)
            seen.add(user["user"])
            yield user


def _fault(line: str, seen: set[str]) -> str | None:
    """Return what is wrong with a line; None where nothing is."""
    try:
        user = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} at character {error.pos + 1}"
    if not (isinstance(user, dict) and isinstance(user.get("user"), str) and user["user"]):
        return 'no object with a "user" that is a text'
    if user["user"] in seen:
        return f"user {user['user']!r} that an earlier line has already"
    for domain in DOMAINS:
        items = user.get(domain)
        if not (isinstance(items, list) and all(isinstance(item, str) and item for item in items)):
            return f'"{domain}" is no list of texts'
    if len(set(user["target"])) < len(user["target"]):
        return "a target item stands twice in the list"
    return None

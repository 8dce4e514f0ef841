"""The text format of the UAF authors' ColdRec data: one user per line, without ids for users.

A line of the target file is ``id,id,…,id,,y1,y2,…``: the source sequence, oldest first and padded with 0
in front, a double comma, the target items, or one profile class. A line of the pre-training file is
``id,id,…,id``. Users are named after their lines: ``000000001``, … and ``pretrain-000000001``, ….
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from finetune_kit.data.checks import settle
from finetune_kit.data.database import sql_name
from finetune_kit.data.places import find_files
from finetune_kit.data.preparation import DEFAULT_MEMORY_LIMIT, OnBad, Preparation, logger, preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.data.reader import DatasetReader
from finetune_kit.data.tables import RawTable, append_text
from finetune_kit.data.text import TextFormat
from finetune_kit.files import write_text
from finetune_kit.options import Options

WHOLE_LINE = TextFormat(delimiter="\x01", names=("line",), quote="")
"""One column: no line has the delimiter."""
NUMBERS = "[0-9]+(,[0-9]+)*"
SEQUENCE, TARGETS = "split_part(line, ',,', 1)", "split_part(line, ',,', 2)"


class ColdRecOptions(Options):
    """Options of `ColdRec`."""

    file: str
    """The target file: lines `id,id,…,id,,y1,y2,…`."""
    pretrain_file: str | None = None
    """More source sequences, lines `id,id,…,id`: users that serve pre-training only."""
    task: Literal["items", "label"] = "items"
    """What follows the double comma: target items, or one class of a profile label."""
    label_name: str = Field(default="label", min_length=1)
    """With task=label, the label's name."""
    max_target: int | None = Field(default=None, ge=1)
    """Keep at most that many target items per user, the first; none keeps all."""
    min_source: int = Field(default=1, ge=1)
    """Leave out users with fewer source items."""
    on_bad: OnBad = "refuse"
    """What becomes of lines that can't be used: refuse the file, or drop them with a warning."""
    memory_limit: str = DEFAULT_MEMORY_LIMIT
    """How much memory preparing may take, about; what does not fit is sorted on disk beside the output."""

    @field_validator("label_name")
    @classmethod
    def _not_user(cls, name: str) -> str:
        if name.lower() == "user":
            raise ValueError("'user' is the name of the users' column; choose another")
        return name


class ColdRec(DatasetReader):
    """Reads the authors' text files; a sequence's order is its only time."""

    Options = ColdRecOptions
    positional: ClassVar[str | None] = "file"
    options: ColdRecOptions

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Write the lines of two users into a folder, and return the options that read them."""
        write_text(folder / "target.csv", "0,0,7,5,7,,3,2\n0,11,5,,3\n")
        return {"file": str(folder / "target.csv")}

    def prepare(self, output: Path) -> None:
        """Write the dataset folder at ``output``.

        Raises:
            DataError: For input that can't be used as it is.
        """
        options = self.options
        with preparing(output, options.memory_limit, options.on_bad) as preparation:
            inputs = [_read_lines(preparation, "target_lines", options.file)]
            _check_targets(inputs[0], options.task)
            users = "lpad((row + 1)::VARCHAR, 9, '0')"
            make = "CREATE TABLE source AS " + _events("target_lines", users, SEQUENCE)
            if options.pretrain_file is not None:
                inputs.append(_read_lines(preparation, "pretrain_lines", options.pretrain_file))
                _check_shape(inputs[1], NUMBERS, "id,id,…,id")
                _check_sequences(inputs[1])
                make += " UNION ALL " + _events("pretrain_lines", f"'pretrain-' || {users}", SEQUENCE)
            preparation.connection.execute(make)
            _make_targets(preparation, options, users)
            write_dataset(
                preparation,
                options=options.model_dump(),
                inputs=[path for table in inputs for path, _, _ in table.parts],
                max_target=options.max_target,
                min_source=options.min_source,
                keep="target" if options.pretrain_file is None and options.task == "items" else "all",
                has_times=False,
            )


def _read_lines(preparation: Preparation, name: str, file: str) -> RawTable:
    logger.info("reading %s", file)
    table = RawTable(preparation, name, ("line",))
    for path in find_files(file, "file"):
        append_text(table, path, WHOLE_LINE, {"line": "line"})
    settle(table, f"SELECT row FROM {name} WHERE line IS NULL OR trim(line) = ''", "a blank line")
    return table


def _check_shape(table: RawTable, pattern: str, form: str) -> None:
    """Settle lines with something other than whole numbers, or in another arrangement."""
    odd = f"SELECT row, regexp_extract(line, '[^,]*[^0-9,][^,]*') AS value FROM {table.name}"
    settle(table, f"{odd} WHERE regexp_matches(line, '[^0-9,]')", "id {value} is not a whole number from 0")
    other = f"SELECT row FROM {table.name} WHERE NOT regexp_full_match(line, '{pattern}')"
    settle(table, other, f"the line is not of the form {form}")


def _check_sequences(table: RawTable) -> None:
    middle = f"SELECT row FROM {table.name} WHERE regexp_matches({SEQUENCE}, '[1-9][0-9]*,0+(,|$)')"
    settle(table, middle, "a 0 after an item: 0 is padding and stands in front")
    empty = f"SELECT row FROM {table.name} WHERE regexp_full_match({SEQUENCE}, '[0,]*')"
    settle(table, empty, "a user without source history: nothing but padding")


def _check_targets(table: RawTable, task: str) -> None:
    """Settle lines of the target file that can't be used, before and after the double comma."""
    after = NUMBERS if task == "items" else "[0-9]+"
    _check_shape(table, f"{NUMBERS},,{after}", "id,…,id,," + ("y1,y2,…" if task == "items" else "class"))
    _check_sequences(table)
    if task == "items":
        padded = f"SELECT row FROM {table.name} WHERE regexp_matches(',' || {TARGETS} || ',', ',0+,')"
        settle(table, padded, "target item 0: 0 is padding")
        twice = f"list_transform(string_split({TARGETS}, ','), lambda id: ltrim(id, '0'))"
        twice = f"SELECT row FROM {table.name} WHERE list_unique({twice}) < len({twice})"
        settle(table, twice, "a target item stands twice on the line")


def _events(lines: str, user: str, ids: str) -> str:
    """Return a query of one row per item of the lines, without padding, in the columns of an event log."""
    ids = f"string_split({ids}, ',')"
    return (
        f"SELECT user, ltrim(item, '0') AS item, position AS time, 0 AS tie FROM (SELECT {user} AS user, "
        f"unnest({ids}) AS item, generate_subscripts({ids}, 1) AS position "
        f"FROM {lines}) WHERE ltrim(item, '0') <> ''"
    )


def _make_targets(preparation: Preparation, options: ColdRecOptions, user: str) -> None:
    """Make the table ``target``, or ``labels`` and an empty ``target``."""
    run = preparation.connection.execute
    if options.task == "items":
        run("CREATE TABLE target AS " + _events("target_lines", user, TARGETS))
        return
    run("CREATE TABLE target AS SELECT * FROM source WHERE false")
    label = sql_name(options.label_name)
    run(f"CREATE TABLE labels AS SELECT {user} AS user, {TARGETS} AS {label} FROM target_lines")

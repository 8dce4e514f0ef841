"""A dataset by folder or by name: a reader that needs no files prepares itself into a cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_kit.component import Component
from finetune_kit.data.folder import FORMAT_VERSION, is_dataset
from finetune_kit.data.places import files_of_pattern
from finetune_kit.data.reader import DatasetReader
from finetune_kit.data.remote import find_remote, is_address
from finetune_kit.errors import DataError, FinetuneKitError, OptionError, did_you_mean, one_line
from finetune_kit.options import resolve
from finetune_kit.plugins import installed


def resolve_dataset(text: str, options: Mapping[str, Any], cache: Path | None = None) -> Path:
    """Return the dataset folder that ``--data`` names, after preparing it where it is named by its reader.

    Args:
        text: A folder, or the name of an installed dataset reader whose options all have a value.
        options: Options of the reader; what is prepared under them is kept in the cache, in ``<key>/<text>``, and
            reused.
        cache: Where that is; None takes `cache_folder`.

    Raises:
        DataError: When there is neither such a folder nor such a reader, or preparing fails.
        OptionError: For options that the reader does not have, or with a folder, which takes none.
    """
    try:
        folder = Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise DataError(f"no dataset folder at {text!r}: {one_line(error)}") from None
    if folder.is_dir():
        if options:
            raise OptionError(f"{folder} is prepared already and takes no options: {', '.join(sorted(options))}")
        return folder
    readers = installed().components("dataset")
    if text not in readers:
        names = ", ".join(repr(name) for name in readers) or "none"
        guess = did_you_mean(text, readers)
        raise DataError(
            f"no dataset folder at {text!r}, and no dataset of that name.{guess} Datasets: {names}; "
            "`ftkit data prepare` makes a folder"
        )
    return _prepared(readers[text], make_reader(readers[text], options), cache or cache_folder())


def make_reader(component: Component, values: Mapping[str, Any]) -> DatasetReader:
    """Return a component's reader with its options filled; the text ``none`` stands for no value.

    Raises:
        OptionError: For an option that the reader does not have, lacks, or a value that does not fit.
    """
    reader: type[DatasetReader] = component.load()
    values = {
        **component.preset,
        **{key: None if value == "none" else value for key, value in values.items()},
    }
    for name, field in reader.Options.model_fields.items():
        if field.is_required() and name not in values:
            raise OptionError(
                f"dataset {component.name!r} needs the option {name}; see `ftkit data prepare {component.name} --help`"
            )
    return reader(resolve(reader.Options, values, component.name))


def cache_folder() -> Path:
    """Return where prepared datasets are kept: ``$FTKIT_CACHE`` or ``ftkit`` in the user's cache folder."""
    if os.environ.get("FTKIT_CACHE"):
        return Path(os.environ["FTKIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftkit"


def _prepared(component: Component, reader: DatasetReader, cache: Path) -> Path:
    folder = cache / "datasets" / _key(component, reader) / component.name
    if is_dataset(folder):
        return folder
    try:
        reader.prepare(folder)
    except DataError:
        if not is_dataset(folder):  # another process may have been faster
            raise
    return folder


def _key(component: Component, reader: DatasetReader) -> str:
    """Return a hash of what the prepared folder depends on: options, files they name, the reader's code, versions."""
    options = reader.options.model_dump(mode="json")
    files = {}
    for value in dict(reader.options).values():
        files |= _versions(value) if isinstance(value, str) else {}
    decides = [options, files, FORMAT_VERSION, version("finetune-kit"), component.code_hash()]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _versions(text: str) -> dict[str, tuple[int, int | str | None]]:
    """Return size and version of each file that an option's text may name."""
    if is_address(text):
        with suppress(FinetuneKitError):  # another kind of address, or its reader says what is wrong with it
            return {file.address: (file.size, file.version) for file in find_remote(text, "data")[0]}
        return {}
    stats = {str(path.resolve()): path.stat() for path in _files(text)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _files(text: str) -> list[Path]:
    """Return the files that an option's text may name: a file, those below a folder, or those of a pattern."""
    path = Path(text).expanduser()
    if not path.exists():
        return sorted(files_of_pattern(path))
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())

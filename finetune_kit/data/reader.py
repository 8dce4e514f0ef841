"""What turns somebody's files into a dataset folder: the base of every dataset plugin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from finetune_kit.options import Options


class DatasetReader(ABC):
    """Prepares a dataset folder from raw files, or from nothing (a generator).

    For implementers: derive, give the options a model, write `prepare`. The command line makes
    ``ftkit data prepare NAME`` of it: one ``--option`` per field of ``Options``, help from their docstrings.
    A reader whose options all have defaults can be named in place of a folder: ``ftkit run --data NAME``.

    Args:
        options: A filled ``Options`` model; None takes the defaults.
    """

    Options: ClassVar[type[Options]] = Options
    """The options model."""
    options: Any
    """The filled model; Any, so that a subclass may annotate its own."""
    positional: ClassVar[str | None] = None
    """The option that may stand on the command line without its name, e.g. the file to read."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Write a small input into a folder, and return the options that read it.

        For `finetune_kit.testing.DatasetContract` and `ftkit plugins check`. A reader whose options all have defaults
        needs none.
        """
        return {}

    @abstractmethod
    def prepare(self, output: Path) -> None:
        """Write the dataset folder at ``output``, whole or not at all.

        Raises:
            DataError: For input that can't be used as it is; names file, row and reason.
        """

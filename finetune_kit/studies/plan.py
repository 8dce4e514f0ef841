"""What a search is asked for, and its record on disk, ``sweep.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from finetune_kit.config import Config, deciding_options, differences, resolve_config
from finetune_kit.errors import CheckpointError, OptionError, one_line
from finetune_kit.files import write_json
from finetune_kit.foreign import read_json
from finetune_kit.options import Options
from finetune_kit.studies.space import Dimension, combinations, read_space, with_values

FILE = "sweep.json"
Sampler = Literal["auto", "grid", "random", "tpe"]
Pruner = Literal["none", "median", "halving"]


class SweepOptions(Options):
    """The section ``sweep`` of a configuration file: a search, beside what all its trials share."""

    search: dict[str, str | list[Any]] = Field(default_factory=dict)
    """Option to what is tried: a list of values, or a range as a text, e.g. "1e-4:1e-2:log"."""
    trials: int | None = Field(None, ge=1)
    """How many; a grid has as many as combinations."""
    sampler: Sampler = "auto"
    """grid tries all combinations, random draws, tpe draws where earlier trials did well; auto is tpe where trials are
    given, else grid."""
    pruner: Pruner = "none"
    """Ends a trial that does badly on validation: median, halving, or none."""
    seed: int | None = Field(None, ge=0)
    """Seeds what is drawn; that of the runs where it is not given."""
    seeds: tuple[int, ...] = ()
    """Each trial is run with all of them, and counts by its mean."""


@dataclass(frozen=True)
class Sweep:
    """A search, checked.

    Args:
        sections: What all trials share, as `resolve_config` takes it.
        options: How to search.

    Raises:
        FinetuneKitError: For whatever is wrong with either, before anything trains.
    """

    sections: Mapping[str, Mapping[str, Any]]
    options: SweepOptions
    space: tuple[Dimension, ...] = field(init=False)
    grid: tuple[Mapping[str, Any], ...] = field(init=False)
    """All combinations in order; empty where values are drawn."""

    def __post_init__(self) -> None:
        """Read the space and refuse what can't be searched."""
        object.__setattr__(self, "space", read_space(self.options.search, self.sections))
        is_grid = self.sampler == "grid"
        if is_grid and self.options.trials is not None:
            raise OptionError("--sampler grid tries all combinations; leave --trials out, or take random or tpe")
        if not is_grid and self.options.trials is None:
            raise OptionError(f"--sampler {self.sampler}: how many? Add --trials 30")
        object.__setattr__(self, "grid", tuple(combinations(self.space)) if is_grid else ())
        for values in self.grid:
            self.config(values)  # what does not go together is refused now
        if len(set(self.seeds)) < len(self.seeds):
            raise OptionError("--seeds: one is given twice; keep one")

    @property
    def sampler(self) -> str:
        """``"grid"``, ``"random"`` or ``"tpe"``."""
        if self.options.sampler != "auto":
            return self.options.sampler
        return "grid" if self.options.trials is None else "tpe"

    @property
    def num_trials(self) -> int:
        """How many trials there are to be."""
        return len(self.grid) or self.options.trials or 0

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that each trial is run with."""
        return self.options.seeds or (self.shared.run.seed,)

    @property
    def seed(self) -> int:
        """What seeds the draws."""
        return self.seeds[0] if self.options.seed is None else self.options.seed

    @property
    def shared(self) -> Config:
        """The configuration without what is searched."""
        return resolve_config(self.sections)

    @property
    def monitor(self) -> str:
        """The validation metric that trials are judged by."""
        return "mrr@5" if self.shared.run.task == "items" else "f1_macro"

    def config(self, values: Mapping[str, Any], seed: int | None = None) -> Config:
        """Return the configuration of a trial, under one of the seeds."""
        seed = self.seeds[0] if seed is None else seed
        return resolve_config(with_values(self.sections, {"run.seed": seed, **values}))

    def asked(self, fingerprint: str) -> dict[str, Any]:
        """Return what decides the search, by the names of the command line; a search is gone on with under the same."""
        shared = deciding_options(self.config({}).tables())
        searched = {dimension.path for dimension in self.space}
        return {
            "dataset": fingerprint,
            **{f"--search {dimension.path}": dimension.text for dimension in self.space},
            "--sampler": self.sampler,
            "--pruner": self.options.pruner,
            "--seed": self.seed,
            "--seeds": list(self.seeds),
            **{path: value for path, value in shared.items() if path not in searched and path != "run.seed"},
        }


def refuse_foreign(folder: Path) -> None:
    """Raise if a search can't go to a folder: it is a file, or holds something else."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise OptionError(
                f"--output {str(folder)!r}: {str(path)!r} is a file where a folder is expected; name another"
            )
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if FILE not in names and {name for name in names if not name.startswith(".")}:
        raise OptionError(f"--output {str(folder)!r} is not empty: it is no search; name another folder")


def refuse_other(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether a folder holds this search; raise if it holds another.

    Raises:
        OptionError: Naming every difference.
        CheckpointError: When the record is damaged.
    """
    if not (folder / FILE).exists():
        return False
    if told := differences(read_record(folder)["asked"], asked):
        raise OptionError(f"{str(folder)!r} holds another search: {told}; give that, or name another --output")
    return True


def write_record(folder: Path, asked: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write ``sweep.json``."""
    write_json(folder / FILE, {"asked": dict(asked), **facts})


def read_record(folder: Path) -> dict[str, Any]:
    """Return what ``sweep.json`` says.

    Raises:
        CheckpointError: When it can't be read.
    """
    try:
        record = read_json(folder / FILE)
        if not isinstance(record["asked"], dict):
            raise TypeError("no mapping")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FILE} is damaged: {one_line(error)}; name another --output") from error


def shown(values: Mapping[str, Any]) -> str:
    """Return a trial's values for a line, numbers with four digits."""
    return ", ".join(f"{path}={number(value)}" for path, value in values.items())


def number(value: Any) -> str:
    """Return a value for a table; a float with four digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)

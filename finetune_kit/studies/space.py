"""What is searched: options, each with its values or its range, typed by the option's own field.

finetune.batch_size=64,128,256          these values
finetune.learning_rate=1e-4:1e-2:log    any number between, as many from each power of ten
strategy.temperature=1:20               any number between, evenly; whole ones where the option takes those
finetune.weight_decay=0:0.1:0.02        every 0.02
"""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Union, get_args, get_origin

from finetune_kit.comparison.variations import COMMON, OWN
from finetune_kit.config import Config, resolve_config
from finetune_kit.errors import OptionError
from finetune_kit.plugins import installed
from finetune_kit.sections import DataOptions, FinetuneOptions, PretrainOptions

EXAMPLE = "e.g. --search finetune.learning_rate=1e-4:1e-2:log or --search finetune.batch_size=64,128"
MOST_VALUES = 10_000
"""Combinations that a grid may have."""
SHARED = {"data": DataOptions, "pretrain": PretrainOptions, "finetune": FinetuneOptions}
"""Sections whose options depend on no plugin."""


@dataclass(frozen=True)
class Dimension:
    """One searched option.

    Args:
        path: ``"section.option"``, deeper for options within options.
        text: What was asked for.
        values: All values, in order; empty for a range without a step.
        low: The least value of a range.
        high: The greatest value of a range.
        is_log: Whether a range is drawn from by its logarithm.
    """

    path: str
    text: str
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    is_log: bool = False

    @property
    def is_ordered(self) -> bool:
        """Whether values are numbers of a range with a step, so that neighbours are alike."""
        return bool(self.values) and ":" in self.text

    def suggest(self, trial: Any) -> Any:
        """Return the value of an Optuna trial; one that it has already, or one that its sampler draws."""
        if self.is_ordered:
            return self.values[trial.suggest_int(self.path, 0, len(self.values) - 1)]
        if self.values:
            return trial.suggest_categorical(self.path, self.values)
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(self.path, self.low, self.high, log=self.is_log)

    def stored(self, value: Any) -> Any:
        """Return how an Optuna trial has a value."""
        return self.values.index(value) if self.is_ordered else value

    def value(self, stored: Any) -> Any:
        """Return the value that an Optuna trial has so."""
        return self.values[stored] if self.is_ordered else stored


def with_values(sections: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return sections with some options, by path, set."""
    made: dict[str, Any] = {name: dict(table) for name, table in sections.items()}
    for path, value in values.items():
        *parents, option = path.split(".")
        place = made
        for parent in parents:
            place[parent] = dict(place.get(parent) or {})
            place = place[parent]
        place[option] = value
    return made


def read_space(
    search: Mapping[str, str | Sequence[Any]], sections: Mapping[str, Mapping[str, Any]]
) -> tuple[Dimension, ...]:
    """Return what is searched.

    Args:
        search: Path to what is asked for: a text as above, or a list of values.
        sections: The configuration that all trials share.

    Raises:
        OptionError: For what can't be searched, an unknown option, or a value that it does not take.
        UnknownNameError: For a strategy or backbone that is not installed.
    """
    if not search:
        raise OptionError(f"nothing is searched; {EXAMPLE}")
    config = resolve_config(sections)
    return tuple(_dimension(path.strip(), asked, sections, config) for path, asked in search.items())


def combinations(space: Iterable[Dimension]) -> list[dict[str, Any]]:
    """Return all combinations of values, by path; the last option changes fastest.

    Raises:
        OptionError: Where a range has no end of values, or there are too many combinations.
    """
    space = list(space)
    for dimension in space:
        if not dimension.values:
            raise OptionError(
                f"--search {dimension.path}={dimension.text}: a grid needs values, e.g. 1,2,4, or a step, e.g. "
                "LOW:HIGH:STEP; or give --trials, and they are drawn"
            )
    if (number := math.prod(len(dimension.values) for dimension in space)) > MOST_VALUES:
        raise OptionError(f"the grid has {number:,} combinations, more than {MOST_VALUES:,}; give --trials")
    paths = [dimension.path for dimension in space]
    products = itertools.product(*(dimension.values for dimension in space))
    return [dict(zip(paths, values, strict=True)) for values in products]


def _dimension(path: str, asked: str | Sequence[Any], sections: Mapping[str, Any], config: Config) -> Dimension:
    section, *options = path.split(".")
    if not options or not all(options):
        raise OptionError(f"--search {path!r} is no section.option; {EXAMPLE}")
    _refuse_unsearchable(path, section, options, sections)
    kinds = _kinds(section, options, config)
    if kinds & {tuple, list}:
        raise OptionError(f"--search {path}: that option is a list, whose commas are its own; set it instead")
    text = asked if isinstance(asked, str) else ",".join(map(_typed, asked))
    is_range = isinstance(asked, str) and ":" in text and (bool(kinds & {int, float}) or not kinds)
    typed = _Typing(path, sections, kinds)
    if is_range:
        return _range(path, text, typed)
    given = [part.strip() for part in text.split(",") if part.strip()] if isinstance(asked, str) else list(asked)
    values = [typed(value) for value in given]
    if len(values) < 2:
        raise OptionError(f"--search {path}={text}: one value is no search; give several, LOW:HIGH, or --set it")
    for value in values:
        if values.count(value) > 1:
            raise OptionError(f"--search {path}: {value!r} is given twice; keep one")
    return Dimension(path, text, tuple(values))


def _range(path: str, text: str, typed: _Typing) -> Dimension:
    ends = [part.strip() for part in text.split(":")]
    if len(ends) not in (2, 3) or not all(ends):
        raise OptionError(f"--search {path}={text} is no range: LOW:HIGH, LOW:HIGH:STEP or LOW:HIGH:log")
    low, high = typed(ends[0]), typed(ends[1])
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise OptionError(f"--search {path}={text} is no range of numbers; give values with commas between")
    if isinstance(low, float) or isinstance(high, float):
        low, high = float(low), float(high)
    if not low < high:
        raise OptionError(f"--search {path}={text}: {ends[0]} is not below {ends[1]}")
    if ends[2:] == ["log"]:
        if low <= 0:
            raise OptionError(f"--search {path}={text}: log needs numbers above 0")
        return Dimension(path, text, (), low, high, is_log=True)
    if not ends[2:]:
        return Dimension(path, text, (), low, high)
    return Dimension(path, text, tuple(typed(value) for value in _steps(path, text, *ends)))


def _steps(path: str, text: str, low: str, high: str, step: str) -> Iterator[str]:
    """Yield the numbers of a range with a step, as texts: 0.3, not 0.30000000000000004."""
    try:
        first, last, width = Decimal(low), Decimal(high), Decimal(step)
    except InvalidOperation:
        first = last = width = Decimal(0)
    if not width.is_finite() or width <= 0:
        raise OptionError(f"--search {path}={text}: {step!r} is neither log nor a step above 0")
    number = int((last - first) / width) + 1
    if not 2 <= number <= MOST_VALUES:
        raise OptionError(f"--search {path}={text}: {number:,} values; give another step")
    for k in range(number):
        yield str(first + k * width)


@dataclass(frozen=True)
class _Typing:
    """Makes an option's values of texts, as a run would, or raises as it would."""

    path: str
    sections: Mapping[str, Any]
    kinds: frozenset[Any]

    def __call__(self, value: Any) -> Any:
        made: Any = resolve_config(with_values(self.sections, {self.path: value})).tables()
        for name in self.path.split("."):
            made = made[name]
        if self.kinds or not isinstance(made, str):
            return made
        for kind in (int, float):  # an option within options that only its owner knows
            try:
                return kind(made)
            except ValueError:
                continue
        return made


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_unsearchable(path: str, section: str, options: list[str], sections: Mapping[str, Any]) -> None:
    """Raise for what all trials must share, and for what is set already."""
    if shared := COMMON.get(path) or COMMON.get(section):
        raise OptionError(f"--search {path}: all trials share {shared}; --set it")
    if path in OWN or section == "run":
        raise OptionError(f"--search {path}: a search is within one; `ftkit compare` tells several apart")
    place: Any = sections.get(section, {})
    for option in options:
        place = place.get(option) if isinstance(place, Mapping) else None
    if place is not None:
        raise OptionError(f"{path} is both set and searched; do one of them")


def _kinds(section: str, options: list[str], config: Config) -> frozenset[Any]:
    """Return the types that an option's field takes; none where only its owner knows."""
    if section in ("strategy", "backbone"):
        model = installed().component(section, getattr(config.run, section)).load().Options
    elif section in SHARED:
        model = SHARED[section]
    else:
        return frozenset()  # an unknown section: resolving a value tells it
    field = model.model_fields.get(options[0])
    if field is None or len(options) > 1:
        return frozenset()
    return frozenset(_flat(field.annotation))


def _flat(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of, without what they hold."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _flat(part)
    elif origin is not None and hasattr(annotation, "__metadata__"):
        yield from _flat(get_args(annotation)[0])
    else:
        yield origin or annotation

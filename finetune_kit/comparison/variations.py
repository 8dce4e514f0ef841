"""Which of a comparison's options are fixed, which make rows, which are tuned, and which strategies they concern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune_kit.errors import OptionError, did_you_mean
from finetune_kit.options import Options
from finetune_kit.plugins import installed
from finetune_kit.sections import DataOptions, EvaluationOptions, FinetuneOptions, PretrainOptions, RunOptions

OWN = {
    "run.strategy": "--strategies",
    "run.seed": "--seeds",
    "run.backbone": "--backbone",
    "data.fraction": "--fraction",
}
"""Options that a comparison has its own arguments for."""
COMMON = {
    "run.data": "the dataset",
    "run.task": "the task",
    "run.device": "the device",
    "run.precision": "the precision",
    "run.deterministic": "the algorithms",
    "run.preset": "the preset",
    "data.split": "the test instances",
    "data.unseen": "the test instances",
    "evaluation": "the evaluation",
}
"""Sections and options that all rows share, and what they decide."""
SHARED = {
    "run": RunOptions,
    "data": DataOptions,
    "pretrain": PretrainOptions,
    "finetune": FinetuneOptions,
    "evaluation": EvaluationOptions,
}
"""Sections whose options are the same for all strategies and backbones."""


class Variation(NamedTuple):
    """Several values for one option, e.g. ``("strategy.policy", ("conv", "gru"))``."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Variations:
    """A comparison's options, sorted.

    Args:
        fixed: Section to options that have one value.
        varied: Options of which each value makes a row.
        tuned: Options of which each row tries all values.
    """

    fixed: Mapping[str, Mapping[str, Any]]
    varied: Sequence[Variation]
    tuned: Sequence[Variation]

    def fixed_for(self, strategy: str, backbone: str) -> dict[str, dict[str, Any]]:
        """Return the sections for a strategy on a backbone, without the options that others alone have."""
        names = {"strategy": strategy, "backbone": backbone}
        return {
            section: {option: value for option, value in options.items() if _concerns(section, option, names)}
            for section, options in self.fixed.items()
        }

    def varied_for(self, strategy: str, backbone: str) -> list[Variation]:
        """Return the variations that make rows of a strategy on a backbone."""
        names = {"strategy": strategy, "backbone": backbone}
        return [variation for variation in self.varied if _concerns(*_split(variation.path), names)]


def refuse_contradictions(sections: Mapping[str, Mapping[str, Any]], tune: Mapping[str, Sequence[Any]]) -> None:
    """Raise for options that a comparison has its own arguments for, and for what is both set and tuned.

    Raises:
        OptionError: Naming the option.
    """
    given = {f"{section}.{option}" for section, options in sections.items() for option in options}
    for path, flag in OWN.items():
        if path in given or path in tune:
            raise OptionError(f"{path} is what is compared; give {flag} instead")
    for path, values in tune.items():
        if path in given:
            raise OptionError(f"{path} is both set and tuned; do one of them")
        if not values:
            raise OptionError(f"--tune {path}: no values; e.g. --tune finetune.learning_rate=1e-3,3e-4")


def variations_of(
    sections: Mapping[str, Mapping[str, Any]],
    tune: Mapping[str, Sequence[Any]],
    strategies: Sequence[str],
    backbones: Sequence[str],
) -> Variations:
    """Return options sorted into fixed, varied and tuned.

    Raises:
        UnknownNameError: For a strategy or backbone that is not installed.
        OptionError: For an option that none of them has, or several values where all rows must share one.
    """
    names = {"strategy": strategies, "backbone": backbones}
    fixed: dict[str, dict[str, Any]] = {}
    varied: list[Variation] = []
    for section, options in sections.items():
        models = _models(section, names)
        for option, value in options.items():
            path = f"{section}.{option}"
            values = _values(models, option, value, is_shared=_shared_as(path) is not None)
            if section in names:
                _refuse_ownerless(path, models)
            if len(values) == 1:
                fixed.setdefault(section, {})[option] = values[0]
            else:
                varied.append(_checked(path, values))
    return Variations(fixed, varied, [_tuned(path, values, names) for path, values in tune.items()])


def _models(section: str, names: Mapping[str, Sequence[str]]) -> dict[str, type[Options]]:
    """Return the options models behind a section: one, or one per compared strategy or backbone, by name."""
    if section in names:
        return {name: installed().component(section, name).load().Options for name in names[section]}
    return {section: SHARED[section]} if section in SHARED else {}


def _values(models: Mapping[str, type[Options]], option: str, value: Any, *, is_shared: bool) -> tuple[Any, ...]:
    """Return the values given for an option: several only for options that take one; of one that all share, no text."""
    if _is_list(models, option):
        return (value,)
    if isinstance(value, str):
        if is_shared:  # a folder's name may have commas
            return (value,)
        return tuple(part.strip() for part in value.split(",") if part.strip()) or (value,)
    return tuple(value) if isinstance(value, tuple | list) and value else (value,)


def _is_list(models: Mapping[str, type[Options]], option: str) -> bool:
    """Return whether an option takes several values itself; so does one that nobody has: its error comes later."""
    types = [str(model.model_fields[option].annotation) for model in models.values() if option in model.model_fields]
    return not types or any(text.startswith(("tuple", "list", "dict")) for text in types)


def _tuned(path: str, values: Sequence[Any], names: Mapping[str, Sequence[str]]) -> Variation:
    """Return a tuned option, if all rows have it: every strategy gets the same budget."""
    section, option = _split(path)
    if not option:
        raise OptionError(f"--tune {path!r} is not section.option=v1,v2, e.g. finetune.learning_rate=1e-3,3e-4")
    models = _models(section, names)
    if section in names:
        _refuse_ownerless(path, models)
    for name, model in models.items():
        if option not in model.model_fields and section in names:
            raise OptionError(
                f"--tune {path}: {name!r} has no such option, so not every {section} would get the same tuning budget; "
                "tune what all have"
            )
        if option in model.model_fields and _is_list(models, option):
            raise OptionError(f"--tune {path}: that option is a list, whose commas are its own; set it instead")
    return _checked(path, tuple(values))


def _checked(path: str, values: tuple[Any, ...]) -> Variation:
    if shared := _shared_as(path):
        raise OptionError(f"{path}={','.join(map(str, values))}: all rows share {shared}; give one value")
    for value in values:
        if values.count(value) > 1:
            raise OptionError(f"{path}: {value!r} is given twice; keep one")
    return Variation(path, values)


def _shared_as(path: str) -> str | None:
    """Return what an option decides that all rows share, or None for others."""
    return COMMON.get(path) or COMMON.get(_split(path)[0])


def _concerns(section: str, option: str, names: Mapping[str, str]) -> bool:
    """Return whether an option is one of the named strategy or backbone; those of other sections concern all."""
    if section not in names:
        return True
    return option in installed().component(section, names[section]).load().Options.model_fields


def _refuse_ownerless(path: str, models: Mapping[str, type[Options]]) -> None:
    section, option = _split(path)
    known = list(dict.fromkeys(name for model in models.values() for name in model.model_fields))
    if option not in known:
        which = ", ".join(repr(name) for name in models)
        have = ", ".join(known) or "none"
        raise OptionError(f"no option {path} of {which}.{did_you_mean(option, known)} Options of {section}: {have}")


def _split(path: str) -> tuple[str, str]:
    section, _, option = path.partition(".")
    return section, option

"""What is compared, as cells: a run per row, seed and tried configuration, all resolved before any of them trains."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_kit.comparison.results import Setting
from finetune_kit.comparison.variations import Variation, Variations, refuse_contradictions, variations_of
from finetune_kit.config import SECTIONS, Config, resolve_config
from finetune_kit.errors import OptionError
from finetune_kit.foreign import one_name
from finetune_kit.sections import label_of

NOT_DECIDING = ("data", "trackers", "preset", "device", "save_minutes")
"""Options of ``run`` that don't tell runs apart: for ``data`` its content does, for ``preset`` what it sets."""


@dataclass(frozen=True)
class Comparison:
    """What to compare: strategies × seeds × fractions × backbones on one dataset.

    Args:
        strategies: Strategies, by name, in the order of the rows.
        seeds: Every row is run with each; a seed's rows share split and pre-trained backbone.
        fractions: Shares of the training instances.
        backbones: Backbones, by name.
        sections: Section to options, as `resolve_config` takes them. Several values for an option that takes one (a
            text with commas, or a list) make a row each; options of ``strategy`` go to those strategies that have
            them, options of ``backbone`` likewise.
        tune: ``"finetune.learning_rate"`` to the values to try: each row is trained with every combination, and the
            one with the best validation metric is what it shows.

    Raises:
        OptionError: For no strategies or seeds, the same one twice, or options that contradict the above.
    """

    strategies: Sequence[str]
    seeds: Sequence[int] = (0, 1, 2)
    fractions: Sequence[float] = (1.0,)
    backbones: Sequence[str] = ("nextitnet",)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("strategies", "seeds", "fractions", "backbones"):
            _refuse_none_or_twice(name, getattr(self, name))
        refuse_contradictions(self.sections, self.tune)

    @property
    def task(self) -> str:
        """``"items"`` or ``"label:NAME"``."""
        return self.sections.get("run", {}).get("task", "items")

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best epoch, and among tuned configurations."""
        return "mrr@5" if label_of(self.task) is None else "f1_macro"


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        setting: Its row.
        tuned: What this configuration tries, by option; empty without tuning.
        seed: Its seed.
        config: Everything resolved.
    """

    setting: Setting
    tuned: Mapping[str, Any]
    seed: int
    config: Config

    def folder(self, fingerprint: str) -> str:
        """Return the name of its run folder: the same for the same options and dataset, whatever it is compared with.

        Only options that differ from their defaults count, so that a new option with a default moves no folder.
        """
        decides = {"dataset": fingerprint, **deciding(self.config, defaults=False)}
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        run = self.config.run
        return one_name(f"{run.strategy}-{run.backbone}-f{self.config.data.fraction:g}-s{run.seed}-{digest}")


def deciding(config: Config, *, defaults: bool = True) -> dict[str, dict[str, Any]]:
    """Return the options that tell runs apart, as plain values; with or without those that are at their default."""
    tables = {name: getattr(config, name).model_dump(mode="json", exclude_defaults=not defaults) for name in SECTIONS}
    tables["run"] = {name: value for name, value in tables["run"].items() if name not in NOT_DECIDING}
    return tables


def plan_cells(comparison: Comparison) -> list[Cell]:
    """Return all cells, row by row, each row's configurations and seeds together.

    Raises:
        FinetuneKitError: For a name that is not installed, or an option that none of the compared has.
    """
    variations = variations_of(comparison.sections, comparison.tune, comparison.strategies, comparison.backbones)
    cells = []
    for fraction, backbone, strategy in itertools.product(
        comparison.fractions, comparison.backbones, comparison.strategies
    ):
        for varied in _combinations(variations.varied_for(strategy, backbone)):
            variant = ", ".join(f"{path}={value}" for path, value in varied.items())
            setting = Setting(strategy, variant, backbone, float(fraction))
            for tuned in _combinations(variations.tuned):
                for seed in comparison.seeds:
                    config = _resolve(variations, setting, seed, {**varied, **tuned})
                    cells.append(Cell(setting, tuned, seed, config))
    return cells


def _resolve(variations: Variations, setting: Setting, seed: int, chosen: Mapping[str, Any]) -> Config:
    sections = variations.fixed_for(setting.strategy, setting.backbone)
    run = {"strategy": setting.strategy, "backbone": setting.backbone, "seed": seed}
    sections["run"] = {**sections.get("run", {}), **run}
    sections["data"] = {**sections.get("data", {}), "fraction": setting.fraction}
    for path, value in chosen.items():
        section, _, option = path.partition(".")
        sections[section] = {**sections.get(section, {}), option: value}
    config = resolve_config(sections)
    if label_of(config.run.task) is None and 5 not in config.evaluation.cutoffs:
        raise OptionError("a comparison shows MRR@5 and HR@5: have 5 among evaluation.cutoffs")
    return config


def _combinations(variations: Iterable[Variation]) -> list[dict[str, Any]]:
    """Return every combination of values, by path; one empty one for no variations."""
    variations = list(variations)
    values = itertools.product(*(variation.values for variation in variations))
    return [dict(zip((variation.path for variation in variations), combination, strict=True)) for combination in values]


def _refuse_none_or_twice(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise OptionError(f"{name}: none given; name at least one")
    for value in values:
        if list(values).count(value) > 1:
            raise OptionError(f"{name}: {value!r} is given twice; keep one")

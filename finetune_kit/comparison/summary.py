"""Means and deviations over seeds, of rows and of the simple rankings beside them; how numbers are written."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from finetune_kit.comparison.results import Results, Setting

TITLES = {"accuracy": "Accuracy", "f1_macro": "F1 macro"}
"""How metrics of labels are headed; those of rankings are upper case."""


class Summary(NamedTuple):
    """Mean and sample standard deviation (n − 1) over seeds; no deviation of one seed."""

    mean: float
    deviation: float | None
    count: int

    def text(self, form: str = ".4f") -> str:
        """Return ``"0.1642 ± 0.0031"``."""
        mean = format(self.mean, form)
        return mean if self.deviation is None else f"{mean} ± {format(self.deviation, form)}"


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), deviation, len(values))


def of_row(results: Results, setting: Setting, metric: str, protocol: str = "") -> Summary:
    """Return a row's test metric over its seeds."""
    return summarise([run.value(metric, protocol) for run in results.of(setting)])


def of_references(results: Results, metric: str, protocol: str = "") -> dict[str, Summary]:
    """Return a test metric of the simple rankings over seeds, by their name; all runs of a seed share them."""
    by_name: dict[str, dict[int, float]] = {}
    for run in results.runs:
        for name, values in run.metrics.get("references", {}).items():
            value = values[protocol][metric] if protocol else values[metric]
            by_name.setdefault(name, {}).setdefault(run.seed, value)
    return {name: summarise(list(values.values())) for name, values in by_name.items()}


def by_fraction(results: Results) -> dict[float, Results]:
    """Return the results of each share of the training data; their rows' names leave it out."""
    fractions = dict.fromkeys(setting.fraction for setting in results.settings)
    return {
        fraction: replace(results, runs=tuple(run for run in results.runs if run.setting.fraction == fraction))
        for fraction in fractions
    }


def is_whole(results: Results, setting: Setting) -> bool:
    """Return whether a row has all seeds; others are not ranked."""
    return len(results.of(setting)) == len(results.seeds)


def title(metric: str) -> str:
    """Return a metric's head."""
    return TITLES.get(metric, metric.upper())


def lost_to_references(results: Results) -> list[str]:
    """Return a line per metric for each simple ranking that no row beats, by share of the data and ranking protocol."""
    lines, parts = [], by_fraction(results)
    for (fraction, part), protocol in itertools.product(parts.items(), results.protocols):
        data = f" with {fraction * 100:g} % of the training instances" if len(parts) > 1 else ""
        under = f" ({protocol})" if protocol else ""
        rows = [setting for setting in part.settings if is_whole(part, setting)] or part.settings
        for metric in part.metrics:
            best, name = max((of_row(part, setting, metric, protocol).mean, part.name(setting)) for setting in rows)
            for reference, value in of_references(part, metric, protocol).items():
                if value.mean >= best:
                    is_equal = round(value.mean, 4) == round(best, 4)
                    text = f"{name} equals its" if is_equal else f"{name} has {best:.4f}, it has"
                    where = f"{title(metric)}{under}{data}"
                    lines.append(f"no strategy beats {reference} in {where}: {text} {value.mean:.4f}")
    return lines


def of_seeds(seeds: Iterable[int]) -> str:
    """Return ``"seed 3"`` or ``"seeds 0, 1"``."""
    seeds = list(seeds)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def signed(value: float, digits: int = 4) -> str:
    """Return a number with its sign, e.g. ``"−0.0031"``; what rounds to 0 is ``"+0.0000"``."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−").replace("inf", "∞")  # −0.0 + 0.0 is 0.0


def p_value(p: float) -> str:
    """Return a p-value of four digits, e.g. ``"<0.0001"``."""
    return "<0.0001" if p < 0.00005 else f"{p:.4f}"

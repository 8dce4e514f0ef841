"""Metrics with error bars: every row of a comparison, each seed's point, and the simple rankings as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from finetune_kit.comparison import summary
from finetune_kit.comparison.results import Results, Setting
from finetune_kit.report.picture import (
    GREY,
    Look,
    Part,
    Picture,
    in_words,
    new_figure,
    ordered_protocols,
    parts,
    short,
)

_DASHES = ("--", ":", "-.", (0, (1, 3)))
_FAR = 0.5
"""How far outside of the rows' span, as a share of it, a simple ranking may be before it is named instead of drawn; a
single row has no span, and all of them are drawn."""


def metrics_pictures(results: Results, looks: Mapping[Setting, Look]) -> Iterator[Picture]:
    """Yield a picture per fraction of the training data: a row of panels per protocol, a panel per metric."""
    for part in parts(results):
        yield _picture(part, looks)


def _picture(part: Part, looks: Mapping[Setting, Look]) -> Picture:
    results = part.results
    panels = [(protocol, metric) for protocol in ordered_protocols(results) for metric in results.metrics]
    rows = len(panels) // len(results.metrics)
    figure = new_figure(0.5 + rows * (0.75 + 0.27 * len(results.settings)))
    grid = figure.subplots(rows, len(results.metrics), squeeze=False, sharey=True)
    references = list(results.runs[0].metrics.get("references", {}))
    drawn = {name for axes, panel in zip(grid.flat, panels, strict=True) for name in _draw(axes, results, looks, panel)}
    handles = [*_legend(results), *(_line(i, name) for i, name in enumerate(references) if name in drawn)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return Picture(
        name=f"metrics{part.suffix}",
        title=f"Metrics per strategy{part.words}",
        caption=_caption(results, references),
        alt=_alt(results, *panels[0]),
        figure=figure,
    )


def _draw(axes: Axes, results: Results, looks: Mapping[Setting, Look], panel: tuple[str, str]) -> list[str]:
    """Draw one metric: a line per row of the comparison, the first on top; return the simple rankings drawn."""
    protocol, metric = panel
    settings = results.settings
    for place, setting in enumerate(settings):
        _draw_row(axes, place, values_of(results, setting, metric, protocol), looks[setting])
    axes.set_yticks(range(len(settings)), [short(results.name(setting)) for setting in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_title(in_words(metric, protocol))
    axes.grid(axis="x")
    axes.margins(x=0.06)
    axes.tick_params(axis="y", length=0)
    references = summary.of_references(results, metric, protocol)
    return _draw_references(axes, {name: values.mean for name, values in references.items()})


def _draw_row(axes: Axes, place: int, values: np.ndarray, look: Look) -> None:
    """Draw each seed's value, mean and standard deviation, and write the numbers beside the panel."""
    mean, text = values.mean(), f"{values.mean():.4f}"
    axes.scatter(values, np.full(len(values), float(place)), s=16, color=look.colour, alpha=0.4, linewidths=0)
    if len(values) > 1:
        deviation = values.std(ddof=1)
        text += f" ± {deviation:.4f}"
        axes.errorbar(mean, place, xerr=deviation, color=look.colour, capsize=3, elinewidth=1.6)
    axes.plot(mean, place, look.marker, color=look.colour, markersize=6.5, markeredgecolor="white", zorder=5)
    axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color="#333333")


def _draw_references(axes: Axes, references: Mapping[str, float]) -> list[str]:
    """Draw the simple rankings as lines and return their names; far ones stand in words, so that rows keep room."""
    low, high = axes.get_xlim()
    room = _FAR * (high - low) if len(axes.get_yticks()) > 1 else float("inf")
    far = {name: value for name, value in references.items() if not low - room <= value <= high + room}
    for index, (name, value) in enumerate(references.items()):
        if name not in far:
            axes.axvline(value, color=GREY, linestyle=_DASHES[index % len(_DASHES)], linewidth=1.1)
    left = "".join(f"← {name} {value:.4f}  " for name, value in far.items() if value < low)
    right = "".join(f"  {name} {value:.4f} →" for name, value in far.items() if value > high)
    if left or right:
        axes.set_title(left + right, loc="right", fontsize=8, color=GREY)
    return [name for name in references if name not in far]


def values_of(results: Results, setting: Setting, metric: str, protocol: str) -> np.ndarray:
    """Return a row's metric on the test part, ``(seeds,)``."""
    return np.array([run.value(metric, protocol) for run in results.of(setting)])


def _line(index: int, name: str) -> Line2D:
    return Line2D([], [], color=GREY, linestyle=_DASHES[index % len(_DASHES)], label=name)


def _legend(results: Results) -> list[Line2D]:
    seed = Line2D([], [], color=GREY, alpha=0.5, marker="o", markersize=4, linestyle="", markeredgewidth=0)
    if len(results.seeds) == 1:
        return []
    mean = Line2D([], [], color=GREY, marker="o", markersize=6, linewidth=1.6, markeredgecolor="white")
    mean.set_label("mean ± standard deviation over seeds")
    seed.set_label("one seed")
    return [mean, seed]


def _caption(results: Results, references: list[str]) -> str:
    seeds = len(results.seeds)
    points = (
        f"Mean and standard deviation over {seeds} seeds, and each seed" if seeds > 1 else "One seed, no error bars"
    )
    lines = (
        f" Lines: {', '.join(references)}, which train nothing; an arrow names one that is far off."
        if references
        else ""
    )
    return f"{points}, on the test part. The axes don't start at 0.{lines}"


def _alt(results: Results, protocol: str, metric: str) -> str:
    values = [
        f"{results.name(setting)} {values_of(results, setting, metric, protocol).mean():.4f}"
        for setting in results.settings
    ]
    return f"Dot plot. {in_words(metric, protocol)}: {', '.join(values)}."

"""Learning curves (Fig. 4): the validation metric and the training loss per epoch, and the epochs that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.report.picture import Look, Part, Picture, hide_unused, in_words, new_figure, parts, short

OVERLAID = 6
"""So many strategies share axes; more get a panel each."""
_COLUMNS = 4
_WIDE = 20
"""Losses whose largest is more than that many times the smallest are drawn on a logarithmic axis."""
_PREFERRED = ("hr@5", "accuracy")
"""What is drawn where it was measured: as in Fig. 4, and for profile labels."""


class Curve(NamedTuple):
    """A row's mean over its seeds, per epoch.

    Args:
        epoch: ``(epochs,)``, ascending from 1.
        mean: ``(epochs,)``, over the seeds that still train then.
        whole: Number of leading epochs in which all seeds train.
    """

    epoch: np.ndarray
    mean: np.ndarray
    whole: int


def mean_curve(histories: list[np.ndarray]) -> Curve:
    """Return the mean of curves of unequal length; each is ``(epochs,)``."""
    lengths = [len(history) for history in histories]
    table = np.full((len(histories), max(lengths)), np.nan)
    for row, history in zip(table, histories, strict=True):
        row[: len(history)] = history
    return Curve(np.arange(1, max(lengths) + 1), np.nanmean(table, axis=0), min(lengths))


def curve_pictures(results: Results, looks: Mapping[Setting, Look]) -> Iterator[Picture]:
    """Yield per fraction of the data one picture of two panels, or where rows are many two pictures of many panels."""
    metric = monitored(results)
    for part in parts(results):
        if len(part.results.settings) <= OVERLAID:
            yield _overlaid(part, looks, metric)
        else:
            yield _multiples(part, looks, metric, "curves")
            yield _multiples(part, looks, "train_loss", "loss")


def monitored(results: Results) -> str:
    """Return the validation metric to draw."""
    columns = results.runs[0].history
    wanted = (*_PREFERRED, *results.metrics, *(name for name in columns if name not in ("epoch", "seconds")))
    return next(name for name in wanted if name in columns)


def _overlaid(part: Part, looks: Mapping[Setting, Look], metric: str) -> Picture:
    results, figure = part.results, new_figure(3.8)
    settings = results.settings
    for axes, column in zip(figure.subplots(1, 2), (metric, "train_loss"), strict=True):
        for setting in settings:
            _draw(axes, results.of(setting), looks[setting], column)
        _label(axes, column)
    losses = np.concatenate([run.history["train_loss"] for run in results.runs])
    if losses.min() > 0 and losses.max() > _WIDE * losses.min():
        figure.axes[1].set_yscale("log")
    handles = [_handle(looks[setting], short(results.name(setting))) for setting in settings]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return _picture(part, figure, metric, "curves", "Left: the validation metric; right: the training loss. ")


def _multiples(part: Part, looks: Mapping[Setting, Look], column: str, name: str) -> Picture:
    """Draw a panel per row, the means of all others in grey behind it where the numbers compare."""
    is_metric = column != "train_loss"
    results, settings = part.results, part.results.settings
    rows = -(-len(settings) // _COLUMNS)
    figure = new_figure(0.4 + 1.75 * rows)
    grid = list(figure.subplots(rows, _COLUMNS, sharex=True, sharey=is_metric, squeeze=False).flat)
    curves = {setting: mean_curve([run.history[column] for run in results.of(setting)]) for setting in settings}
    for axes, setting in zip(grid, settings, strict=False):
        for other, curve in curves.items():
            if other != setting and is_metric:
                axes.plot(curve.epoch, curve.mean, color="#d4d4d4", linewidth=0.8, zorder=1)
        _draw(axes, results.of(setting), looks[setting], column)
        axes.set_title(short(results.name(setting), 30), color=looks[setting].colour)
        axes.grid()
    for axes in grid[len(settings) - _COLUMNS : len(settings)]:
        axes.tick_params(labelbottom=True)
    hide_unused(grid, len(settings))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(_in_words(column), fontsize=9)
    layout = "Grey: the means of the other rows. " if is_metric else "Each row has an axis of its own. "
    return _picture(part, figure, column, name, layout)


def _draw(axes: Axes, runs: list[Result], look: Look, column: str) -> None:
    """Draw thin lines per seed with their best epochs, and the mean; it is dashed once a seed has stopped."""
    many = len(runs) > 1
    for run in runs:
        values = run.history[column]
        width, alpha = (0.7, 0.35) if many else (1.8, 1.0)
        axes.plot(range(1, len(values) + 1), values, color=look.colour, linewidth=width, alpha=alpha)
        best = run.metrics["best_epoch"]
        axes.plot(
            best, values[best - 1], look.marker, color=look.colour, markersize=6.5, markeredgecolor="white", zorder=5
        )
    if many:
        epoch, mean, whole = mean_curve([run.history[column] for run in runs])
        axes.plot(epoch[:whole], mean[:whole], color=look.colour, linewidth=2)
        axes.plot(epoch[whole - 1 :], mean[whole - 1 :], color=look.colour, linewidth=1.2, linestyle=(0, (2, 1.5)))


def _label(axes: Axes, column: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_title(_in_words(column))
    axes.grid()


def _in_words(column: str) -> str:
    return "Training loss" if column == "train_loss" else f"{in_words(column, '')} on the validation part"


def _handle(look: Look, name: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markeredgecolor="white", linewidth=2, label=name)


def _picture(part: Part, figure: Figure, metric: str, name: str, layout: str) -> Picture:
    results = part.results
    lines = "Thin lines are seeds, thick lines their mean, dashed from where the first seed has stopped. "
    lines = lines if len(results.seeds) > 1 else ""
    loss = "Losses of strategies that add terms of their own don't compare."
    return Picture(
        name=f"{name}{part.suffix}",
        title=f"Learning curves{part.words}" if name == "curves" else f"Training loss{part.words}",
        caption=f"{layout}{lines}Markers: the epoch whose weights were kept, by the validation part. {loss}",
        alt=f"Line chart over epochs. {_in_words(metric)}: {_alt(results, metric)}.",
        figure=figure,
    )


def _alt(results: Results, column: str) -> str:
    said = []
    for setting in results.settings:
        runs = results.of(setting)
        kept = np.mean([run.history[column][run.metrics["best_epoch"] - 1] for run in runs])
        last = np.mean([run.history[column][-1] for run in runs])
        epochs = ", ".join(str(run.metrics["best_epoch"]) for run in runs)
        said.append(f"{results.name(setting)} {kept:.4f} at the kept epochs ({epochs}), {last:.4f} at the last")
    return "; ".join(said)

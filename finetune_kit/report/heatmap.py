"""The policy as a picture (Fig. 3): share of users per fine-tuned block, for all users and for kinds of users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from finetune_kit.comparison.results import Result, Results
from finetune_kit.data.dataset import Labels
from finetune_kit.report.picture import Part, Picture, hide_unused, new_figure, parts, short

MAX_CLASSES = 8
"""Labels with more classes than that are no kinds of users."""
_CELL = 0.42
_ROW = 0.27
_SHUFFLES = 19
"""What exceeds all of 19 shuffles has p ≤ 0.05."""
_COLOURS = matplotlib.colormaps["cividis"]  # blue to yellow as in Fig. 3, and told apart when colour-blind


class Heat(NamedTuple):
    """A heat map's numbers.

    Args:
        title: Above it.
        rows: Their names.
        values: ``(rows, blocks)``, mean gates; NaN where a row has no such block.
    """

    title: str
    rows: list[str]
    values: np.ndarray


def policy_pictures(results: Results, kinds: dict[str, Labels]) -> Iterator[Picture]:
    """Yield per fraction of the data the policies over all users, then by kind of user; nothing without gates.

    Args:
        results: The comparison.
        kinds: Labels that tell kinds of users apart, by name.
    """
    for part in parts(results):
        gated = [run for run in part.results.runs if run.gates is not None]
        if not gated:
            continue
        yield _overall(part, gated)
        for name, labels in kinds.items():
            told = [run for run in gated if len(usage_by_kind(run, labels)[0]) > 1]
            if told:
                yield _by_kind(part, told, name, labels)


def kinds_of(labels: dict[str, Labels]) -> dict[str, Labels]:
    """Return the labels with few enough classes to draw."""
    return {name: label for name, label in labels.items() if 2 <= len(label.classes) <= MAX_CLASSES}


def usage(runs: list[Result]) -> np.ndarray:
    """Return the mean gate per block and run, ``(runs, blocks)``; NaN beyond a run's blocks."""
    means = [run.gates.mean(axis=0) for run in runs if run.gates is not None]
    table = np.full((len(means), max(map(len, means))), np.nan)
    for row, mean in zip(table, means, strict=True):
        row[: len(mean)] = mean
    return table


def usage_by_kind(run: Result, labels: Labels) -> tuple[list[str], np.ndarray]:
    """Return kinds with their numbers of users, and the mean gate per kind and block, ``(kinds, blocks)``."""
    assert run.gates is not None and run.policy is not None
    kind = labels.value[run.policy["user"] - 1]
    return _by(kind, run.gates, labels)


def chance_gap(runs: list[Result], labels: Labels) -> float:
    """Return the largest difference between kinds, over runs and blocks, that shuffling the users' kinds gives.

    A shuffle deals the known kinds out anew, the same to all runs, and counts with the largest difference of any run:
    the difference that it is held against is the largest of all runs too.
    """
    shown = [(run.policy["user"] - 1, run.gates) for run in runs if run.policy is not None and run.gates is not None]
    users = np.unique(np.concatenate([user for user, _ in shown]))
    users = users[labels.value[users] >= 0]
    draw, value, gaps = np.random.default_rng(0), labels.value.copy(), []
    for _ in range(_SHUFFLES):
        value[users] = draw.permutation(value[users])
        gaps += [np.ptp(_by(value[user], gates, labels)[1], axis=0).max() for user, gates in shown]
    return float(max(gaps))


def _by(kind: np.ndarray, gates: np.ndarray, labels: Labels) -> tuple[list[str], np.ndarray]:
    present = [index for index in range(len(labels.classes)) if (kind == index).any()]
    names = [f"{labels.classes[index]} ({(kind == index).sum():,})" for index in present]
    means = [gates[kind == index].mean(axis=0) for index in present]
    return names, np.array(means)


def _overall(part: Part, runs: list[Result]) -> Picture:
    heats = []
    for setting in dict.fromkeys(run.setting for run in runs):
        own = [run for run in runs if run.setting == setting]
        values, names = usage(own), [f"seed {run.seed}" for run in own]
        if len(own) > 1:
            values, names = np.vstack([values, values.mean(axis=0)]), [*names, "mean"]
        heats.append(Heat(part.results.name(setting), names, values))
    said = [
        f"{heat.title} {name}: {_numbers(row)}"
        for heat in heats
        for name, row in zip(heat.rows, heat.values, strict=True)
    ]
    return Picture(
        name=f"policy{part.suffix}",
        title=f"What the policies choose{part.words}",
        caption="Share of users on the fine-tuned branch, per residual block (Fig. 3); for soft gates, the mean gate. "
        "1 means that the block is fine-tuned for everybody, 0 that it stays frozen for everybody.",
        alt=f"Heat map of blocks. {'; '.join(said)}.",
        figure=_draw_all(heats),
    )


def _by_kind(part: Part, runs: list[Result], name: str, labels: Labels) -> Picture:
    heats, widest = [], ("", 0, -1.0)
    for run in runs:
        rows, values = usage_by_kind(run, labels)
        title = f"{part.results.name(run.setting)}, seed {run.seed}"
        heats.append(Heat(title, rows, values))
        gap = np.ptp(values, axis=0)
        if gap.max() > widest[2]:
            widest = (title, int(gap.argmax()) + 1, float(gap.max()))
    difference = (
        f"The largest difference between two kinds, of all runs and blocks, is {widest[2]:.2f}: {widest[0]}, block "
        f"{widest[1]}; kinds dealt out at random to the same users differ by up to {chance_gap(runs, labels):.2f} in "
        f"some run and block (largest of {_SHUFFLES} shuffles)."
    )
    return Picture(
        name=f"policy-by-{_stem(name)}{part.suffix}",
        title=f"What the policies choose, by {name}{part.words}",
        caption=f"As above, for users of each {name} (number of users in brackets). {difference}",
        alt=f"Heat maps of blocks by {name}. {difference}",
        figure=_draw_all(heats),
        is_detail=True,
    )


def _draw_all(heats: list[Heat]) -> Figure:
    """Draw heat maps in a grid that is as wide as the page lets it be."""
    names = max(len(short(name, 20)) for heat in heats for name in heat.rows)
    width = 0.2 + 0.075 * names + _CELL * max(heat.values.shape[1] for heat in heats)
    titles = 0.2 + 0.075 * max(len(short(heat.title)) for heat in heats)
    columns = max(1, min(len(heats), int(9.2 / max(width, titles))))
    rows = -(-len(heats) // columns)
    height = rows * (0.55 + _ROW * max(len(heat.rows) for heat in heats)) + 0.3
    figure = new_figure(height, 0.9 + columns * max(width, titles))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, heat in zip(grid, heats, strict=False):
        _draw(axes, heat)
    for axes in grid[max(0, len(heats) - columns) : len(heats)]:
        axes.set_xlabel("block", fontsize=8)
    hide_unused(grid, len(heats))
    scale = ScalarMappable(Normalize(0, 1), _COLOURS)
    bar = figure.colorbar(scale, ax=grid[: len(heats)], ticks=[0, 0.5, 1], pad=0.02, aspect=30, fraction=0.03)
    bar.set_label("share of users\non the fine-tuned branch" if height > 1.9 else "share of users", fontsize=8)
    return figure


def _draw(axes: Axes, heat: Heat) -> None:
    rows, blocks = heat.values.shape
    axes.imshow(heat.values, cmap=_COLOURS, norm=Normalize(0, 1), aspect="auto")
    for row, column in np.argwhere(~np.isnan(heat.values)):
        value = heat.values[row, column]
        ink = "black" if value > 0.5 else "white"
        number = axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
        number.set_in_layout(False)  # it lies inside; measuring thousands of them takes long
    axes.set_xticks(range(blocks), [str(k + 1) for k in range(blocks)])
    axes.set_yticks(range(rows), [short(name, 20) for name in heat.rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(short(heat.title))
    if heat.rows[-1] == "mean":
        axes.axhline(rows - 1.5, color="white", linewidth=3)


def _numbers(row: np.ndarray) -> str:
    return " ".join(f"{value:.2f}" for value in row if not np.isnan(value))


def _stem(name: str) -> str:
    """Return a label's name as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)

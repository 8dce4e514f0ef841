"""Where one of two rows wins, as a picture and in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.summary import signed
from finetune_kit.report.picture import GREY, Look, Picture, hide_unused, in_words, new_figure, short
from finetune_kit.report.wins import MIN_USERS, Bin, Wins

_COLUMNS = 3


def wins_picture(results: Results, wins: Wins, looks: Mapping[Setting, Look]) -> Picture:
    """Return a panel per way to group the users; points above 0 are for the first row."""
    panels = wins.panels
    rows = -(-len(panels) // _COLUMNS)
    figure = new_figure(0.3 + 2.5 * rows)
    grid = list(figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).flat)
    colours = (looks[wins.first].colour, looks[wins.second].colour)
    for axes, (title, bins) in zip(grid, panels.items(), strict=False):
        _draw(axes, bins, colours)
        axes.set_title(short(title, 44))
    for axes in grid[::_COLUMNS]:
        axes.set_ylabel(f"difference in {in_words(wins.metric, '')}")
    hide_unused(grid, len(panels))
    first, second = results.name(wins.first), results.name(wins.second)
    figure.legend(handles=_legend(first, second, colours, wins), loc="outside lower center", ncols=3)
    seeds = "Grey points: each seed alone. " if _has_seeds(wins) else ""
    return Picture(
        name="wins",
        title=f"{first} against {second}, by groups of users",
        caption=f"{in_words(wins.metric, wins.protocol)} of {first} minus that of {second} on the same test instances, "
        "mean over users, with its 95 % confidence interval over users; below each group its number of users. Filled: "
        f"the interval excludes 0. {seeds}The interval does not say how other seeds would do. "
        f"Groups of fewer than {MIN_USERS} users are left out. {_choice(results, wins)}",
        alt=f"Dot plots with error bars. {_alt(panels)}",
        figure=figure,
    )


def _choice(results: Results, wins: Wins) -> str:
    """Return how the two rows were chosen, see `pair_to_compare`."""
    gated = [results.of(setting)[0].policy is not None for setting in (wins.first, wins.second)]
    which = "the best row with gates and the best without" if gated == [True, False] else "the two best rows"
    return f"The two are {which} by {in_words(wins.metric, wins.protocol)}, on the validation part."


def wins_words(results: Results, wins: Wins) -> str:
    """Return in which groups which row is better by more than chance over users would give."""
    sentences, count = [], sum(map(len, wins.panels.values()))
    for setting, sign in ((wins.first, 1), (wins.second, -1)):
        groups = [
            f"{title} {one.label} ({signed(sign * one.mean)} ± {one.half:.4f})"
            for title, bins in wins.panels.items()
            for one in bins
            if sign * one.mean > one.half
        ]
        if groups:
            sentences.append(f"{results.name(setting)} is better for users with: {'; '.join(groups)}.")
    if not sentences:
        return f"In none of the {count} groups does the interval exclude 0."
    return (
        f"{' '.join(sentences)} Among {count} groups, chance alone makes about {max(1, round(0.05 * count))} stand out."
    )


def _draw(axes: Axes, bins: list[Bin], colours: tuple[str, str]) -> None:
    """Draw one way to group the users."""
    axes.axhline(0, color=GREY, linewidth=1)
    for place, one in enumerate(bins):
        colour = colours[0] if one.mean > 0 else colours[1]
        offsets = np.linspace(-0.12, 0.12, len(one.seeds)) if len(one.seeds) > 1 else []
        axes.plot(
            place + 0.25 + np.asarray(offsets), one.seeds[: len(offsets)], ".", color=GREY, alpha=0.6, markersize=4
        )
        axes.errorbar(place, one.mean, yerr=one.half, color=colour, capsize=3, elinewidth=1.6)
        inside = colour if abs(one.mean) > one.half else "white"
        axes.plot(place, one.mean, "o", color=colour, markerfacecolor=inside, markersize=6.5, zorder=5)
    labels = [f"{short(one.label, 12)}\n{one.users:,}" for one in bins]
    axes.set_xticks(range(len(bins)), labels, fontsize=7 if len(bins) > 4 else 8)
    axes.set_xlim(-0.5, len(bins) - 0.4)
    axes.tick_params(axis="y", labelleft=True)
    axes.grid(axis="y")


def _legend(first: str, second: str, colours: tuple[str, str], wins: Wins) -> list[Line2D]:
    names = zip((first, second), colours, strict=True)
    handles = [Line2D([], [], color=colour, marker="o", label=f"{short(name)} is better") for name, colour in names]
    if _has_seeds(wins):
        handles.append(Line2D([], [], color=GREY, marker=".", markersize=4, linestyle="", label="one seed"))
    return handles


def _has_seeds(wins: Wins) -> bool:
    return any(len(one.seeds) > 1 for bins in wins.panels.values() for one in bins)


def _alt(panels: Mapping[str, list[Bin]]) -> str:
    return " ".join(
        f"By {title}: " + ", ".join(f"{one.label} {signed(one.mean)} ± {one.half:.4f}" for one in bins) + "."
        for title, bins in panels.items()
    )

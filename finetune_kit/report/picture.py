"""What all pictures share: a look per row of the comparison, the style, and files that are the same on every run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune_kit.comparison import summary
from finetune_kit.comparison.results import Results, Setting
from finetune_kit.files import appearing

WIDTH = 10.0
"""Inches; at the report's width, text of 9 points is then as large as its captions."""
GREY = "#6b6b6b"
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),  # Okabe & Ito, told apart when colour-blind
    *("#332288", "#882255", "#999933", "#44aa99", "#aa4499", "#661100"),  # Tol, muted
)
_MARKERS = "os^DvPX<>phd*"  # 13, so that with 12 colours no look comes twice in 156 rows
_STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "text.parse_math": False,  # names are taken as they are, "$" too
    "svg.hashsalt": "finetune-kit",
    "svg.fonttype": "path",
}


class Look(NamedTuple):
    """Colour and marker of a row, the same in every picture."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Picture:
    """A drawn figure with its words.

    Args:
        name: Stem of its files.
        title: Heading in the report.
        caption: What is drawn, and what a reader must know about it.
        alt: What is to be seen, for those who can't see it.
        figure: The figure.
        is_detail: Whether the report folds it away.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    is_detail: bool = False

    def write(self, folder: Path) -> bytes:
        """Write ``NAME.png`` and ``NAME.svg`` into a folder; return the SVG."""
        folder.mkdir(parents=True, exist_ok=True)
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        kinds: dict[str, dict[str, Any]] = {
            "svg": {"metadata": nothing},
            "png": {"dpi": 150, "metadata": {"Software": None}},
        }
        written = {}
        for suffix, options in kinds.items():
            content = io.BytesIO()
            with style():
                self.figure.savefig(content, format=suffix, **options)
            self.figure.set_layout_engine(None)  # the places found for the first format serve the second
            written[suffix] = content.getvalue()
            with appearing(folder / f"{self.name}.{suffix}") as path:
                path.write_bytes(written[suffix])
        return written["svg"]


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style, without pyplot, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a box stands for it
        matplotlib.rcdefaults()  # all but the backend, which the context would not give back
        matplotlib.rcParams.update(_STYLE)
        yield


def looks(results: Results) -> dict[Setting, Look]:
    """Return a look per row; rows that differ in the fraction of the data alone share one."""
    whole = dict.fromkeys(setting._replace(fraction=1.0) for setting in results.settings)
    found = {
        row: Look(_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]) for index, row in enumerate(whole)
    }
    return {setting: found[setting._replace(fraction=1.0)] for setting in results.settings}


@dataclass(frozen=True)
class Part:
    """The rows of one fraction of the training data.

    Args:
        results: Their runs alone, so that names don't repeat the fraction.
        suffix: For names of files; empty where the comparison has one fraction.
        words: For titles, e.g. ``", 10 % of the training data"``; likewise.
    """

    results: Results
    suffix: str = ""
    words: str = ""


def parts(results: Results) -> list[Part]:
    """Return the rows by fraction, the largest first."""
    by_fraction = summary.by_fraction(results)
    if len(by_fraction) == 1:
        return [Part(results)]
    return [
        Part(by_fraction[fraction], f"-{100 * fraction:g}-percent", f", {100 * fraction:g} % of the training data")
        for fraction in sorted(by_fraction, reverse=True)
    ]


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure that lays itself out; inches."""
    return Figure(figsize=(width, height), layout="constrained")


def short(name: str, length: int = 34) -> str:
    """Return a name cut to a length that fits beside axes."""
    return name if len(name) <= length else name[: length - 1] + "…"


def in_words(metric: str, protocol: str) -> str:
    """Return how a metric is called, e.g. ``"MRR@5, full ranking"``."""
    return f"{summary.title(metric)}, {protocol} ranking" if protocol else summary.title(metric)


def ordered_protocols(results: Results) -> list[str]:
    """Return the ranking protocols, the full one first."""
    return sorted(results.protocols, key=lambda protocol: protocol != "full")


def hide_unused(axes: list[Axes], used: int) -> None:
    """Take away the panels that a grid has too many."""
    for one in axes[used:]:
        one.remove()

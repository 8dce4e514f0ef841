"""A table as data, and as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from finetune_kit.foreign import visible

Mark = Literal["best", "second"]


@dataclass(frozen=True)
class TableData:
    """A table of texts; the first column names the rows, the others hold numbers.

    Args:
        caption: What it shows, in one paragraph.
        columns: The heads.
        rows: The cells.
        marks: ``(row, column)`` to what a cell is among its column.
        rules: Rows before which a rule stands.
        title: The same in a few words, where there is no room for the caption.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=lambda: MappingProxyType({}))
    rules: frozenset[int] = frozenset()
    title: str = ""

    def to_markdown(self) -> str:
        """Return a Markdown table, best in bold, second best in italics; an empty row stands for a rule."""
        rows = self._styled({"best": "**{}**".format, "second": "*{}*".format}, str)
        lines = [_piped(self.columns), "|" + " --- |" + " ---: |" * (len(self.columns) - 1)]
        for index, row in enumerate(rows):
            lines += [_piped([""] * len(row))] if index in self.rules else []
            lines.append(_piped(row))
        return "\n".join([*lines, "", markdown(self.caption), ""])

    def to_csv(self) -> str:
        """Return the cells as CSV, without marks and rules."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()

    def to_latex(self) -> str:
        r"""Return a LaTeX table of the package booktabs, best in ``\textbf``, second best underlined."""
        rows = self._styled({"best": r"\textbf{{{}}}".format, "second": r"\underline{{{}}}".format}, latex)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(self.caption)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(latex, self.columns)) + r" \\", r"\midrule"]
        for index, row in enumerate(rows):
            lines += [r"\midrule"] if index in self.rules else []
            lines.append(" & ".join(row) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def _styled(self, styles: Mapping[Mark, Callable[[str], str]], escape: Callable[[str], str]) -> list[list[str]]:
        """Return the cells, escaped, marked ones in their style."""
        return [
            [
                styles[self.marks[i, j]](escape(cell)) if (i, j) in self.marks else escape(cell)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "–": "--",
    "…": r"\dots{}",
    "<": "$<$",
    ">": "$>$",
}


def latex(text: str) -> str:
    """Return text with what LaTeX would read as commands escaped."""
    return "".join(_LATEX.get(character, character) for character in visible(text))


def markdown(text: str) -> str:
    """Return text in one line with what Markdown would read as HTML or as a link escaped."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", visible(text)).replace("](", r"]\(")


def _piped(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(markdown(cell).replace("|", r"\|") for cell in cells) + " |"

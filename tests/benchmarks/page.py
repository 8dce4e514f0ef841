"""The tables of the results, and their place in a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def tables(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    parts = [_machine_line(results)]
    if results["rows"]:
        parts.append(_main_table(results))
    if remarks := [f"* `{row['name']}`: {_remarks(row)}." for row in results["rows"] if row["remarks"]]:
        parts.append("\n".join(remarks))
    if results["growth"]:
        parts.append(_growth_table(results["growth"]))
    return "\n\n".join(parts)


def write(page: Path, numbers: Path) -> None:
    """Put the tables of a JSON file between the two markers of a page."""
    text = page.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"{page} must have {BEGIN!r} and {END!r} once each"
    found = tables(json.loads(numbers.read_text(encoding="utf-8")))
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", encoding="utf-8")


def _machine_line(results: dict[str, Any]) -> str:
    machine, peaks = results["machine"], results["matmul_gigaflops_per_second"]
    peak = ", ".join(f"{value:,.0f} in {precision}" for precision, value in peaks.items())
    return (
        f"{results['date']}, size `{results['size']}`: {machine['cpu']} ({machine['capability']}), {machine['cores']} "
        f"cores, {machine['threads']} threads, load {machine['load']:.1f} at the start, torch {machine['torch']}, "
        f"Python {machine['python']}. Peak of a matrix product: {peak} (GFLOP/s)."
    )


def _main_table(results: dict[str, Any]) -> str:
    lines = [
        "| row | what | ours | reference | times as fast | users/s, ours | GFLOP, ours / reference | share of peak "
        "| peak memory, ours / reference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        low, ratio, high = row["spread"]["ratio"]
        cells = [
            f"`{row['name']}`",
            row["what"],
            _seconds(row["spread"]["ours"]),
            _seconds(row["spread"]["reference"]),
            f"**{ratio:.2f}** ({low:.2f} – {high:.2f})",
            f"{row['users'] / row['spread']['ours'][1]:,.0f}" if row["users"] else "",
            " / ".join(f"{count:,.4g}" for count in row["gigaflops"] or ()),
            _share_of_peak(row, results["matmul_gigaflops_per_second"]),
            " / ".join(f"{amount:,.0f} MiB" for amount in row["mebibytes"] or ()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return re.sub(r" +\|", " |", "\n".join(lines))


def _share_of_peak(row: dict[str, Any], peaks: dict[str, float]) -> str:
    if row["gigaflops"] is None:
        return ""
    return f"{row['gigaflops'][0] / row['spread']['ours'][1] / peaks[row['precision']]:.0%}"


def _seconds(spread: list[float]) -> str:
    """Return the median in a unit that suits it, with the quartiles."""
    scale, unit = (1, "s") if spread[1] >= 1 else (1000, "ms")
    low, median, high = (f"{value * scale:.3g}" for value in spread)
    return f"{median} {unit} ({low} – {high})"


def _remarks(row: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value:.3g}" for name, value in row["remarks"].items())


def _growth_table(growth: list[dict[str, Any]]) -> str:
    lines = ["| uaf-hard step over | values | seconds | cost of each doubling |", "| --- | --- | --- | --- |"]
    for row in growth:
        taken = row["seconds"]
        lines.append(
            f"| {row['what']} | {', '.join(f'{value:,}' for value in row['values'])} "
            f"| {', '.join(f'{value:.3g}' for value in taken)} "
            f"| ×{taken[1] / taken[0]:.2f}, ×{taken[2] / taken[1]:.2f} |"
        )
    return "\n".join(lines)

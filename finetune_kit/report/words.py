"""What to read from a comparison, in sentences computed from its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_kit.comparison import summary
from finetune_kit.comparison.control import control_notes, controls
from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.statistics import Pair, Test, test_pairs
from finetune_kit.comparison.summary import signed
from finetune_kit.report.picture import in_words, parts

SIGNIFICANT = 0.05
"""Differences with a smaller p, corrected by Holm's method, are called distinguishable."""


def sentences(results: Results) -> list[str]:
    """Return what to read from the tables: who leads, by how much, and whether that is more than chance."""
    said = []
    for part in parts(results):
        where = part.words.removeprefix(", ")
        lines = [" ".join(_leading(part.results)), *_controls(part.results)]
        said += [f"With {where}: {line}" if where else line for line in lines]
    lost = [line for line in summary.lost_to_references(results) if line not in results.notes]
    said += [f"{line[0].upper()}{line[1:]}." for line in lost]
    return said + [f"{line}." for line in control_notes(results) if line not in results.notes]


def _leading(results: Results) -> Iterator[str]:
    """Yield who leads the first metric, and the other rows' differences from it."""
    metric, protocol = results.metrics[0], results.protocols[0]
    rows = [setting for setting in results.settings if summary.is_whole(results, setting)] or results.settings
    values = {setting: summary.of_row(results, setting, metric, protocol) for setting in rows}
    ranked = sorted(rows, key=lambda setting: -values[setting].mean)
    best, seeds = ranked[0], len(results.of(ranked[0]))
    over = f"over {seeds} seeds" if seeds > 1 else "with one seed"
    if len(ranked) == 1:
        yield f"{results.name(best)}: {in_words(metric, protocol)} {values[best].text()} {over}."
        return
    yield f"{results.name(best)} leads with {in_words(metric, protocol)} {values[best].text()} {over}."
    pairs = {pair.other: pair for pair in _from(best, results, metric)}
    if ranked[1] in pairs and pairs[ranked[1]].tests:
        yield _difference(results, pairs[ranked[1]])
    kind = "seeds" if any("seeds" in pair.tests for pair in pairs.values()) else "instances"
    alike = [other for other in ranked[2:] if other in pairs and _is_alike(pairs[other], kind)]
    if alike:
        names = ", ".join(results.name(setting) for setting in alike)
        yield f"Over {kind}, it can't be told from these rows either: {names}."


def _from(best: Setting, results: Results, metric: str) -> Iterator[Pair]:
    """Yield the pairs of a row with all others of its backbone, as the row minus the other."""
    for pair in test_pairs(results):
        if pair.metric == metric and best in (pair.one, pair.other):
            yield pair if pair.one == best else pair.flipped()


def _is_alike(pair: Pair, kind: str) -> bool:
    return kind in pair.tests and pair.tests[kind].p_holm >= SIGNIFICANT


def _difference(results: Results, pair: Pair) -> str:
    """Return the difference between two rows, with both tests of it."""
    kinds = {"seeds": "{:,} seeds", "instances": "{:,} test instances, which depend on each other,"}
    tested = [
        f"over {count.format(pair.tests[kind].count)} {_verdict(pair.tests[kind])}"
        for kind, count in kinds.items()
        if kind in pair.tests
    ]
    test = pair.tests.get("seeds") or pair.tests["instances"]
    if len(results.seeds) == 1:
        tested.append("how much the numbers vary between seeds, one seed can't say")
    difference = signed(test.difference)
    return f"The difference from {results.name(pair.other)}, the next, is {difference}: {'; '.join(tested)}."


def _verdict(test: Test) -> str:
    told = "distinguishable" if test.p_holm < SIGNIFICANT else "not distinguishable"
    return f"{told} (Holm's p = {test.p_holm:.2g}, d = {signed(test.effect, 2)})"


def _controls(results: Results) -> Iterator[str]:
    """Yield whether deciding per user gains over the best single choice for all users, over the seeds with both."""
    for control in controls(results):
        gain = f"{signed(control.value.mean - control.single.mean)} {summary.title(results.metrics[0])}"
        yield (
            f"{results.name(control.setting)} deciding per user: {control.value.text()}; one choice of blocks for all "
            "its users, with as many fine-tuned blocks as the policy uses on average, rounded: "
            f"{control.single.text()}. Deciding per user gains {gain}."
        )

"""The tables of a comparison, as data: the main one in the shape of the UAF paper's Table 2, costs, tests of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_kit.comparison import summary
from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.statistics import CAVEAT, KINDS, METHODS, Pair, Test, test_pairs
from finetune_kit.comparison.summary import Summary, p_value, signed
from finetune_kit.comparison.table import Mark, TableData

__all__ = ["TableData", "cost_table", "main_tables", "pair_tables"]


def main_tables(results: Results, protocols: Sequence[str] | None = None) -> list[TableData]:
    """Return one table per share of the training data: rows are strategies, columns metrics by ranking protocol.

    Args:
        results: The results.
        protocols: Ranking protocols to show; None shows all.
    """
    return [_main_table(part, protocols or part.protocols) for part in summary.by_fraction(results).values()]


def _main_table(results: Results, protocols: Sequence[str]) -> TableData:
    heads = [(metric, protocol) for protocol in protocols for metric in results.metrics]
    settings = results.settings
    rows = [
        (_name(results, setting), *(summary.of_row(results, setting, *head).text() for head in heads))
        for setting in settings
    ]
    references = [summary.of_references(results, *head) for head in heads]
    for name in references[0]:
        rows.append((name, *(values[name].text() for values in references)))
    ranked = [k for k, setting in enumerate(settings) if summary.is_whole(results, setting)]
    marks = {}
    for column, head in enumerate(heads, start=1):
        values = {k: summary.of_row(results, settings[k], *head) for k in ranked}
        marks |= {(k, column): mark for k, mark in _ranked(values).items()}
    columns = ("strategy", *(f"{summary.title(metric)} {protocol}".strip() for metric, protocol in heads))
    rules = frozenset({len(settings)}) if references[0] else frozenset()
    title = f"{_subject(results)}, {_share(results)}"
    return TableData(_main_caption(results), columns, tuple(rows), marks, rules, title)


def _ranked(values: Mapping[int, Summary]) -> dict[int, Mark]:
    """Return the marks of the best and the second best, as far as shown digits tell; none where all are equal."""
    shown = {k: round(value.mean, 4) for k, value in values.items()}
    order = sorted(set(shown.values()), reverse=True)
    if len(order) < 2:
        return {}
    places: dict[float, Mark] = {order[0]: "best"}
    if list(shown.values()).count(order[0]) == 1:  # after two that are best, none is second
        places[order[1]] = "second"
    return {k: places[value] for k, value in shown.items() if value in places}


def _main_caption(results: Results) -> str:
    seeds = ", ".join(map(str, results.seeds))
    over = f"mean ± standard deviation over seeds {seeds}" if len(results.seeds) > 1 else f"seed {seeds}"
    marked = "; best and second best strategy marked" if len(results.settings) > 1 else ""
    text = f"{_subject(results)}, {_share(results)}: test part, {over}{marked}."
    return " ".join([text, *(_sentence(note) for note in results.notes[:1])])


def _subject(results: Results) -> str:
    return results.dataset if results.task == "items" else f"{results.dataset}, {results.task}"


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def _share(results: Results) -> str:
    return f"{results.settings[0].fraction * 100:g} % of the training instances"


def _name(results: Results, setting: Setting) -> str:
    """Return a row's name, with the number of its seeds where some are missing."""
    missing = (
        "" if summary.is_whole(results, setting) else f" ({len(results.of(setting))} of {len(results.seeds)} seeds)"
    )
    return results.name(setting) + missing


def cost_table(results: Results) -> TableData:
    """Return what each row costs: parameters, epochs, seconds, instances per second; means over seeds."""
    columns = ("strategy", "trained", "of all", "best epoch", "fine-tuning s", "instances/s", "pre-training s")
    rows = []
    for setting in results.settings:
        runs = [run.metrics for run in results.of(setting)]
        trained, total = (runs[0][f"{kind}_parameters"] for kind in ("trainable", "total"))
        pretrain = summary.summarise([run["seconds"]["pretrain"] for run in runs]).mean
        numbers = (
            summary.summarise([run["best_epoch"] for run in runs]).text(".1f"),
            summary.summarise([run["seconds"]["finetune"] for run in runs]).text(".1f"),
            summary.summarise([run["instances_per_second"] for run in runs]).text(",.0f"),
        )
        share = f"{trained / total:.1%}".replace("%", " %")
        rows.append((_name(results, setting), f"{trained:,}", share, *numbers, f"{pretrain:,.1f}" if pretrain else "–"))
    over = "mean ± standard deviation over seeds, " if len(results.seeds) > 1 else ""
    caption = f"{results.dataset}: what training costs; {over}of the configuration shown."
    return TableData(caption, columns, tuple(rows))


def pair_tables(results: Results, against: Setting | None = None) -> list[TableData]:
    """Return the tests of each pair: a table per metric, share of the data and backbone.

    Args:
        results: The results.
        against: Show the pairs of this row alone, as it minus the other; the correction is over all pairs all the same.
    """
    groups: dict[tuple[str, float, str], list[Pair]] = {}
    for pair in test_pairs(results):
        if against in (None, pair.one, pair.other):
            pair = pair.flipped() if against == pair.other else pair
            groups.setdefault((pair.metric, pair.one.fraction, pair.one.backbone), []).append(pair)
    tested = [pairs for pairs in groups.values() if any(pair.tests for pair in pairs)]
    return [_pair_table(results, pairs, against) for pairs in tested]


def _pair_table(results: Results, pairs: Sequence[Pair], against: Setting | None) -> TableData:
    first = pairs[0]
    part = summary.by_fraction(results)[first.one.fraction]
    kinds = [kind for kind in KINDS if any(kind in pair.tests for pair in pairs)]
    columns = ["pair" if against is None else f"{part.name(against)} minus", "difference", "95 % interval"]
    columns += [f"{head} ({kind})" for kind in kinds for head in ("d", "p", "Holm")]
    rows = []
    for pair in pairs:
        row = [part.name(pair.other) if against else f"{part.name(pair.one)} − {part.name(pair.other)}"]
        row += _difference_cells(pair)
        for kind in kinds:
            row += _test_cells(pair.tests[kind]) if kind in pair.tests else ["–"] * 3
        rows.append(tuple(row))
    protocol = f" ({first.protocol} ranking)" if first.protocol else ""
    title = f"{summary.title(first.metric)}{protocol}, {_share(part)}, {first.one.backbone}"
    return TableData(f"{_subject(part)}: {title}, {_method(kinds)}", tuple(columns), tuple(rows), title=title)


def _difference_cells(pair: Pair) -> list[str]:
    if shown := next(iter(pair.tests.values()), None):
        return [signed(shown.difference, 4), f"{signed(shown.low, 4)} … {signed(shown.high, 4)}"]
    return ["–" if pair.difference is None else signed(pair.difference, 4), "–"]


def _method(kinds: Sequence[str]) -> str:
    text = (
        f"{'; '.join(METHODS[kind] for kind in kinds)}. Difference and interval are over "
        f"{kinds[0]}; d is Cohen's d of the differences; Holm is p corrected for all pairs."
    )
    return f"{text} {CAVEAT}" if "instances" in kinds else text


def _test_cells(test: Test) -> list[str]:
    return [signed(test.effect, 2), p_value(test.p), p_value(test.p_holm)]

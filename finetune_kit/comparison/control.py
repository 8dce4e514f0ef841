"""Does deciding per user pay? Each policy against the best single choice of blocks for all users, at equal usage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune_kit.comparison import summary
from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.comparison.statistics import CAVEAT, KINDS, METHODS, Test, holm, overlap_of, paired_t_test
from finetune_kit.comparison.summary import Summary, p_value, signed
from finetune_kit.comparison.table import TableData

COLUMNS = (
    *("strategy", "fine-tuned blocks", "per user", "single", "difference", "95 % interval", "d"),
    *(f"{head} ({kind})" for kind in KINDS for head in ("p", "Holm")),
)
SHOWN_GATES = 8
"""A note on a policy shows the gates of so many blocks."""


class Control(NamedTuple):
    """A policy beside the single choice of blocks that does best on validation, over the seeds that have both.

    Args:
        setting: Its row.
        runs: The runs that have both.
        blocks: Fine-tuned blocks per user.
        value: The metric of the policy.
        single: The metric of the single choice.
        tests: ``"instances"`` and ``"seeds"`` to the test of policy minus single choice, where there is one.
    """

    setting: Setting
    runs: Sequence[Result]
    blocks: Summary
    value: Summary
    single: Summary
    tests: dict[str, Test]


def controls(results: Results) -> list[Control]:
    """Return a policy's comparison with a single choice per row that has one, under the first metric and protocol."""
    metric, protocol = results.metrics[0], results.protocols[0]
    measured = [[run for run in results.of(setting) if run.has_control] for setting in results.settings]
    measured = [runs for runs in measured if runs]
    tests = _corrected([_tests(runs, metric, protocol) for runs in measured])
    return [_control_of(runs, by_kind, metric, protocol) for runs, by_kind in zip(measured, tests, strict=True)]


def control_table(results: Results) -> TableData | None:
    """Return a row per strategy with gates, under the first metric and protocol; None where there is none.

    ``single`` is what the same trained model does when all users are given one choice of blocks: the one that does best
    on validation among those with as many fine-tuned blocks as the policy uses on average, rounded. Of a row, those
    seeds count for which it was measured.
    """
    metric, protocol = results.metrics[0], results.protocols[0]
    if not (found := controls(results)):
        return None
    name = f"{summary.title(metric)} {protocol}".strip()
    text = [
        f"{results.dataset}: {name} of each policy, and of the same model when all users get one choice of blocks: the "
        "best on validation among those with as many fine-tuned blocks as the policy uses on average, rounded.",
        f"{METHODS['instances'].capitalize()}, difference, interval and d too; {METHODS['seeds']}.",
        f"Holm is p corrected for all rows. {CAVEAT}",
        "Where the difference is not above 0, nothing was gained by deciding per user.",
        *(f"{note[0].upper()}{note[1:]}." for note in control_notes(results)),
    ]
    cells = tuple((*_means(results, control), *_cells(control)) for control in found)
    return TableData(" ".join(text), COLUMNS, cells, title="Per-user choice against a single one")


def control_notes(results: Results) -> Iterator[str]:
    """Yield for each policy whose single choice was not measured for all seeds: for which not, and why."""
    for setting in results.settings:
        lacking = [run for run in results.of(setting) if "gates" in run.metrics and not run.has_control]
        if lacking:
            reasons = dict.fromkeys(run.metrics.get("control", {}).get("reason", "not measured") for run in lacking)
            seeds = summary.of_seeds(run.seed for run in lacking)
            name = results.name(setting)
            yield f"no single choice of blocks was measured beside {name}, {seeds}: {'; '.join(reasons)}"


def collapse_notes(results: Results) -> Iterator[str]:
    """Yield for each row whose policy treats its users alike: with which seeds, and what it gives to all of them."""
    for setting in results.settings:
        gates = {run.seed: run.metrics.get("gates", {}) for run in results.of(setting)}
        collapsed = {seed: facts for seed, facts in gates.items() if facts.get("is_collapsed")}
        if collapsed:
            given = dict.fromkeys(_gates(facts["mean"]) for facts in collapsed.values())
            yield (
                f"{results.name(setting)}: the policy treats (nearly) all users alike in {summary.of_seeds(collapsed)} "
                f"(gates {'; '.join(given)})"
            )


def _gates(mean: Sequence[float]) -> str:
    return " ".join([*(f"{gate:.2f}" for gate in mean[:SHOWN_GATES]), *(["…"] if len(mean) > SHOWN_GATES else [])])


def _means(results: Results, control: Control) -> tuple[str, ...]:
    """Return a row's name, with the number of its seeds where some are missing, and its means over them."""
    seeds, planned = len(control.runs), len(results.seeds)
    missing = "" if seeds == planned else f" ({seeds} of {planned} seeds)"
    name = results.name(control.setting) + missing
    return name, control.blocks.text(".1f"), control.value.text(), control.single.text()


def _control_of(runs: Sequence[Result], tests: dict[str, Test], metric: str, protocol: str) -> Control:
    blocks = summary.summarise([sum(run.metrics["gates"]["mean"]) for run in runs])
    value = summary.summarise([run.value(metric, protocol) for run in runs])
    single = summary.summarise([_control(run.metrics, metric, protocol) for run in runs])
    return Control(runs[0].setting, runs, blocks, value, single, tests)


def _control(metrics: Mapping[str, Any], metric: str, protocol: str) -> float:
    values = metrics["control"]["test"]
    return values[protocol][metric] if protocol else values[metric]


def _tests(runs: Sequence[Result], metric: str, protocol: str) -> dict[str, Test]:
    """Return the tests that there are, by kind."""
    instances = [run.per_instance(metric, protocol) - run.per_instance(metric, protocol, control=True) for run in runs]
    seeds = np.array([run.value(metric, protocol) - _control(run.metrics, metric, protocol) for run in runs])
    tests = {"instances": paired_t_test(np.concatenate(instances)), "seeds": paired_t_test(seeds, overlap_of(runs))}
    return {kind: test for kind, test in tests.items() if test}


def _corrected(tests: list[dict[str, Test]]) -> list[dict[str, Test]]:
    """Return tests with Holm's correction over all rows that have one of a kind."""
    for kind in KINDS:
        tested = [by_kind for by_kind in tests if kind in by_kind]
        for by_kind, p in zip(tested, holm([by_kind[kind].p for by_kind in tested]), strict=True):
            by_kind[kind] = by_kind[kind]._replace(p_holm=p)
    return tests


def _cells(control: Control) -> tuple[str, ...]:
    tests, cells = control.tests, [signed(control.value.mean - control.single.mean, 4), "–", "–"]
    if shown := next(iter(tests.values()), None):
        interval = f"{signed(shown.low, 4)} … {signed(shown.high, 4)}"
        cells = [signed(shown.difference, 4), interval, signed(shown.effect, 2)]
    for kind in KINDS:
        cells += [p_value(tests[kind].p), p_value(tests[kind].p_holm)] if kind in tests else ["–"] * 2
    return tuple(cells)

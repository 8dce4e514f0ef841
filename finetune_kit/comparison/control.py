"""Does deciding per user pay? Each policy against the best single choice of blocks for all users, at equal usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune_kit.comparison import summary
from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.statistics import Test, holm, paired_t_test
from finetune_kit.comparison.summary import p_value, signed
from finetune_kit.comparison.table import TableData

COLUMNS = ("strategy", "fine-tuned blocks", "per user", "single", "difference", "95 % interval", "d", "p", "Holm")


def control_table(results: Results) -> TableData | None:
    """Return a row per strategy with gates, under the first metric and protocol; None where there is none.

    ``single`` is what the same trained model does when all users are given one choice of blocks: the one that does best
    on validation among those with as many fine-tuned blocks as the policy uses on average.
    """
    metric, protocol = results.metrics[0], results.protocols[0]
    settings = [setting for setting in results.settings if all(run.has_control for run in results.of(setting))]
    tests = [_test(results, setting, metric, protocol) for setting in settings]
    corrected = holm([test.p for test in tests])
    rows = [
        (
            results.name(setting),
            summary.summarise([sum(run.metrics["gates"]["mean"]) for run in results.of(setting)]).text(".1f"),
            summary.of_row(results, setting, metric, protocol).text(),
            summary.summarise([_control(run.metrics, metric, protocol) for run in results.of(setting)]).text(),
            *_cells(test._replace(p_holm=p)),
        )
        for setting, test, p in zip(settings, tests, corrected, strict=True)
    ]
    name = f"{summary.title(metric)} {protocol}".strip()
    caption = (
        f"{results.dataset}: {name} of each policy, and of the same model when all users get one choice of blocks: the "
        "best on validation among those with as many fine-tuned blocks. Paired t-test over the test instances of all "
        "seeds together; Holm is p corrected for all rows. Where the difference is not above 0, nothing was gained by "
        "deciding per user."
    )
    return TableData(caption, COLUMNS, tuple(rows), title="Per-user choice against a single one") if rows else None


def _control(metrics: Mapping[str, Any], metric: str, protocol: str) -> float:
    values = metrics["control"]["test"]
    return values[protocol][metric] if protocol else values[metric]


def _test(results: Results, setting: Setting, metric: str, protocol: str) -> Test:
    differences = [
        run.per_instance(metric, protocol) - run.per_instance(metric, protocol, control=True)
        for run in results.of(setting)
    ]
    return paired_t_test(np.concatenate(differences))


def _cells(test: Test) -> tuple[str, ...]:
    return (
        signed(test.difference, 4),
        f"{signed(test.low, 4)} … {signed(test.high, 4)}",
        signed(test.effect, 2),
        p_value(test.p),
        p_value(test.p_holm),
    )

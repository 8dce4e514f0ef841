"""Finished runs of several strategies and seeds as one Markdown table: mean ± standard deviation over seeds.

python examples/03_table_of_runs.py runs/*/
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

METRICS = ("hr@5", "mrr@5", "ndcg@5", "hr@10")


def main(folders: Iterable[str] = ()) -> str:
    """Print and return the table of the finished runs among ``folders``; the simple rankings stand in it too."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seen: set[tuple[str, int]] = set()
    for path in sorted(Path(folder) / "metrics.json" for folder in folders):
        if not path.exists() or "strategy" not in (metrics := json.loads(path.read_text(encoding="utf-8"))):
            continue  # unfinished, or a pre-trained backbone
        rankings = {metrics["strategy"]: metrics["test"]}
        for name, by_protocol in metrics["references"].items():
            if (name, metrics["seed"]) not in seen:  # the same in all runs of a seed
                seen.add((name, metrics["seed"]))
                rankings[name] = by_protocol
        for ranking, by_protocol in rankings.items():
            for protocol, values in by_protocol.items():
                for name in METRICS:
                    rows[protocol, ranking][name].append(values[name])
                if ranking == metrics["strategy"]:
                    rows[protocol, ranking]["seconds"].append(metrics["seconds"]["finetune"])
                    rows[protocol, ranking]["epoch"].append(metrics["best_epoch"])
    columns = ("protocol", "ranking", "seeds", *METRICS, "best epoch", "seconds")
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for (protocol, ranking), values in sorted(rows.items()):
        means = [_mean(values[name], ".4f") for name in METRICS]
        cells = [
            protocol,
            ranking,
            str(len(values["hr@5"])),
            *means,
            _mean(values["epoch"], ".0f"),
            _mean(values["seconds"], ".0f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(table)
    return table


def _mean(values: list[float], form: str) -> str:
    if not values:
        return "–"
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


if __name__ == "__main__":
    main(sys.argv[1:])

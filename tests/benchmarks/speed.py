"""Measure ours against the straight reference, in turns and in one process; print a table, write JSON.

python tests/benchmarks/speed.py --size small
python tests/benchmarks/speed.py --only hard-step --only growth --json speed.json
python tests/benchmarks/speed.py --data PREPARED --only hard-epoch
python tests/benchmarks/speed.py --write docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import page
import rows_epochs
import rows_evaluation
import rows_pretraining
import rows_steps
import torch
from machine import machine
from memory import peak_mebibytes
from sizes import SIZES, Size, make_up
from timing import Row, matmul_peaks

from finetune_kit.data.dataset import Dataset

GROWTH = "growth"


def rows(size: Size, dataset: Callable[[], Dataset]) -> dict[str, Callable[[], Row]]:
    """Return by name what can be measured."""
    made = {
        "hard-step": lambda: rows_steps.hard_step(size),
        "hard-step-bf16": lambda: rows_steps.hard_step(size, "bf16-mixed"),
        "hard-epoch": lambda: rows_epochs.hard_epoch(size, dataset()),
        "cls-epoch": lambda: rows_epochs.cls_epoch(size, dataset()),
        "hard-evaluation": lambda: rows_evaluation.hard_evaluation(size, dataset()),
        "hard-recommend": lambda: rows_evaluation.hard_recommend(size, dataset()),
        "hard-encode": lambda: rows_evaluation.hard_encode(size),
        "hard-over-all": lambda: rows_evaluation.hard_over_all(size, dataset()),
    }
    for name, num_items in catalogues(size).items():
        made[name] = lambda num_items=num_items: rows_pretraining.pretrain(size, num_items)
    return made


def catalogues(size: Size) -> dict[str, int]:
    """Return the source items of each pre-training row."""
    return {f"pretrain-{num_items // 1000}k": num_items for num_items in size.catalogues}


def measure(size: Size, names: list[str], data: Path | None, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return the results of some rows; they are told after each one."""
    results = {"date": date.today().isoformat(), "size": size.name, "machine": machine(), "rows": [], GROWTH: []}
    results["matmul_gigaflops_per_second"] = matmul_peaks(size.matmul)
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def dataset() -> Dataset:
            return Dataset.open(data) if data else make_up(Path(folder) / "made-up", *size.dataset)

        measurable = rows(size, dataset)
        for name in names:
            print(f"measuring {name}", file=sys.stderr)
            if name == GROWTH:
                results[GROWTH] = rows_steps.growth(size)
            else:
                results["rows"].append(measurable[name]().record())
            tell(results)
    return results


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="paper takes minutes, small seconds")
    parser.add_argument("--only", action="append", metavar="NAME", help="a row; again for more")
    parser.add_argument("--data", type=Path, help="a prepared dataset, instead of made-up users")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="timed rounds of each row, instead of the size's")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="measure nothing; put the numbers of --json there")
    parser.add_argument("--memory-of", choices=("ours", "straight"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        page.write(arguments.write, arguments.json or arguments.write.with_suffix(".json"))
        return
    torch.set_num_threads(arguments.threads)
    size = replace(SIZES[arguments.size], **({"rounds": arguments.rounds} if arguments.rounds else {}))
    known = [*rows(size, lambda: make_up(Path(), *size.dataset)), GROWTH]
    names = arguments.only or known
    if unknown := set(names) - set(known):
        parser.error(f"no row {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    if arguments.memory_of:
        peaks: list[float] = []
        note = lambda: peaks.append(peak_mebibytes())  # noqa: E731
        rows_pretraining.take_two_steps(size, catalogues(size)[names[0]], arguments.memory_of, note)
        print(peaks[-1])
        return

    def keep(results: dict[str, Any]) -> None:
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")

    print(page.tables(measure(size, names, arguments.data, keep)))


if __name__ == "__main__":
    main()

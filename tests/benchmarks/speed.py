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


Data = Callable[[], Dataset]
"""Opens the dataset, or makes it up, when a row first asks for it."""


def rows(size: Size) -> dict[str, Callable[[Data], Row]]:
    """Return by name what can be measured."""
    measurable: dict[str, Callable[[Data], Row]] = {
        "hard-step": lambda data: rows_steps.hard_step(size),
        "hard-step-bf16": lambda data: rows_steps.hard_step(size, "bf16-mixed"),
        "hard-step-bf16-compiled": lambda data: rows_steps.hard_step(size, "bf16-mixed", compiled=True),
        "hard-epoch": lambda data: rows_epochs.hard_epoch(size, data()),
        "cls-epoch": lambda data: rows_epochs.cls_epoch(size, data()),
        "hard-evaluation": lambda data: rows_evaluation.hard_evaluation(size, data()),
        "hard-recommend": lambda data: rows_evaluation.hard_recommend(size, data()),
        "hard-encode": lambda data: rows_evaluation.hard_encode(size),
        "hard-over-all": lambda data: rows_evaluation.hard_over_all(size, data()),
    }
    for name, num_items in catalogues(size).items():
        measurable[name] = lambda data, num_items=num_items: rows_pretraining.pretrain(size, num_items)
    return measurable


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

        for name in names:
            print(f"measuring {name}", file=sys.stderr)
            if name == GROWTH:
                results[GROWTH] = rows_steps.growth(size)
            else:
                results["rows"].append(rows(size)[name](dataset).record())
            tell(results)
    return results


def main() -> None:
    """Read the command line and do what it asks."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.write:
        page.write(arguments.write, arguments.json or arguments.write.with_suffix(".json"))
        return
    torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    size = replace(size, rounds=arguments.rounds or size.rounds)
    known = [*rows(size), GROWTH]
    names = arguments.only or known
    if unknown := set(names) - set(known):
        parser.error(f"no row {min(unknown)!r}; there are {', '.join(known)}")
    if arguments.memory_of:
        print(_peak_of_two_steps(size, names[0], arguments.memory_of))
        return

    def keep(results: dict[str, Any]) -> None:
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")

    print(page.tables(measure(size, names, arguments.data, keep)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="paper takes many minutes, small about one")
    parser.add_argument("--only", action="append", metavar="NAME", help="a row; again for more")
    parser.add_argument("--data", type=Path, help="a prepared dataset, instead of made-up users")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="timed rounds of each row, instead of the size's")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="measure nothing; put the numbers of --json there")
    parser.add_argument("--memory-of", choices=("ours", "straight"), help=argparse.SUPPRESS)  # for `memory.peak_of`
    return parser


def _peak_of_two_steps(size: Size, name: str, who: str) -> float:
    """Return this process's peak memory, mebibytes, when a pre-training row has taken two steps."""
    peaks: list[float] = []
    rows_pretraining.take_two_steps(size, catalogues(size)[name], who, lambda: peaks.append(peak_mebibytes()))
    return peaks[-1]


if __name__ == "__main__":
    main()

"""Seconds and memory of a pre-training step on a small and on a large catalogue, in three ways.

python tests/benchmarks/speed_of_catalogues.py
python tests/benchmarks/speed_of_catalogues.py --sizes 500 5000 --rounds 1 --windows 4

* straight: all logits at once, cross-entropy, dense gradients, torch's Adam as it comes;
* exact: the same numbers, logits chunk by chunk, fused Adam (the defaults of ``ftkit``);
* sampled: ``pretrain.loss=sampled-softmax`` and ``pretrain.optimizer=lazy-adam``.

All train the same NextItNet. Each measurement is a process of its own, so that its peak memory is its own; ways and
sizes take turns in rounds, and medians are over rounds. Linux only (peak memory from /proc).

Straight logits take windows × length × items × 4 bytes, about three times at once: 32 windows of 50 over 650,000 items
want 15 GiB.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WAYS = ("straight", "exact", "sampled")
"""What is compared."""


@dataclass(frozen=True)
class Sizes:
    """What all ways have in common."""

    windows: int = 32
    length: int = 50
    dim: int = 128
    blocks: int = 8
    negatives: int = 2048
    steps: int = 5
    threads: int = 1


def step_of(way: str, num_items: int, sizes: Sizes) -> Callable[[], None]:
    """Return a function that takes one training step in a way, on windows of its own."""
    import torch
    import torch.nn.functional as F

    from finetune_kit.tables import gradients_by_row
    from finetune_kit.training.optimizer import make_optimizer
    from finetune_kit.training.pretrain import NextItem
    from ftkit_backbones.nextitnet import NextItNet

    torch.manual_seed(0)
    options = NextItNet.Options(dim=sizes.dim, num_blocks=sizes.blocks)
    frequency = 1 / torch.arange(1.0, num_items + 1)
    backbone = NextItNet(num_items, sizes.length, options)
    model = NextItem(backbone, frequency, sizes.negatives if way == "sampled" else 0)
    if way == "straight":
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    else:
        name = "lazy-adam" if way == "sampled" else "adam"
        optimizer = make_optimizer(name, model.parameters(), 1e-3, 0.0, torch.device("cpu"))

    def loss(batch: Any) -> torch.Tensor:
        if way != "straight":
            return model(batch)
        logits = model.output(model.backbone(batch.inputs))  # (windows, length, items)
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten() - 1)

    def step() -> None:
        with gradients_by_row(model, way == "sampled"):
            loss(_windows(num_items, sizes)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _windows(num_items: int, sizes: Sizes) -> Any:
    """Return windows without padding, of items that are popular by Zipf's law."""
    import torch

    from finetune_kit.data.batch import Windows

    uniform = torch.rand(sizes.windows, sizes.length + 1)
    items = (num_items**uniform).long().clamp(1, num_items)
    return Windows(items[:, :-1].contiguous(), items[:, 1:].contiguous())


def measure_here(way: str, num_items: int, sizes: Sizes) -> dict[str, float]:
    """Return the median seconds of a step after the first, and this process's peak memory in GiB."""
    import torch

    torch.set_num_threads(sizes.threads)
    step, seconds = step_of(way, num_items, sizes), []
    for _ in range(1 + sizes.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None, "no peak memory in /proc/self/status"
    return {"seconds": statistics.median(seconds[1:]), "peak_gib": int(peak[1]) / 2**20}


def measure_apart(way: str, num_items: int, sizes: Sizes) -> dict[str, float]:
    """Return what `measure_here` does, of a new process."""
    given = json.dumps({"way": way, "num_items": num_items, "sizes": asdict(sizes)})
    done = subprocess.run([sys.executable, __file__, "--here", given], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(
    catalogues: list[int], rounds: int, sizes: Sizes, ways: tuple[str, ...] = WAYS
) -> dict[tuple[str, int], dict[str, float]]:
    """Return medians of seconds and peak memory, by way and number of items."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {(way, n): [] for n in catalogues for way in ways}
    for _ in range(rounds):
        for (way, num_items), measurements in found.items():
            measurements.append(measure_apart(way, num_items, sizes))
    return {
        case: {key: statistics.median(one[key] for one in measurements) for key in measurements[0]}
        for case, measurements in found.items()
    }


def kept_gib(num_items: int, dim: int) -> float:
    """Return what embedding and output layer take with both of Adam's moments, in GiB."""
    return 3 * 4 * 2 * num_items * dim / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 650_000], help="items")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--here", help=argparse.SUPPRESS)
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    if arguments.here:
        given = json.loads(arguments.here)
        print(json.dumps(measure_here(given["way"], given["num_items"], Sizes(**given["sizes"]))))
        return
    sizes = Sizes(**{name: getattr(arguments, name) for name in asdict(Sizes())})
    found = compare(arguments.sizes, arguments.rounds, sizes, tuple(arguments.ways))
    print(sizes)
    print("| way | items | s/step | × smallest catalogue | peak GiB | tables and moments, GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (way, num_items), medians in found.items():
        ratio = medians["seconds"] / found[way, arguments.sizes[0]]["seconds"]
        numbers = medians["seconds"], ratio, medians["peak_gib"], kept_gib(num_items, sizes.dim)
        print(f"| {way} | {num_items:,} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")


if __name__ == "__main__":
    main()

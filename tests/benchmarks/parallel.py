"""How training grows from one process to two: ``python tests/benchmarks/parallel.py``.

Steps of fine-tuning and of pre-training, the global batch the same: one process with a thread, one with two, and two
with a thread each. What a step of two spends on is told by steps that leave it out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from sizes import Shape

from finetune_kit.processes import here, leave, started_job
from finetune_kit.seeding import seeded
from finetune_kit.tables import gradients_by_row
from finetune_kit.trainable import Trainable
from finetune_kit.training.assemble import build_backbone
from finetune_kit.training.device import make_fabric
from finetune_kit.training.optimizer import make_optimizer
from finetune_kit.training.pretrain import NextItem
from finetune_kit.training.step import Step

SHAPE = Shape(users=256, length=50, dim=64, blocks=4, source_items=20_000, target_items=5_000)
ROUNDS, STEPS, WARM = 3, 8, 2


def main() -> None:
    """Measure all and print ratios; or, within a job, measure this process's part and print seconds."""
    if "--worker" in sys.argv:
        measure_here()
        return
    rounds = [{name: _run(*how) for name, how in WAYS.items()} for _ in range(ROUNDS)]
    for row in rounds[0]["one"]:
        took = {name: statistics.median(one[name][row] for one in rounds) for name in WAYS if row in rounds[0][name]}
        ratios = {name: [one["one"][row] / one[name][row] for one in rounds] for name in took}
        told = (f"{name} {took[name] * 1000:.0f} ms, ×{statistics.median(ratios[name]):.2f}" for name in took)
        print(f"{row}: {'; '.join(told)}")
    for row in (row for row in rounds[0]["two"] if row not in rounds[0]["one"]):
        print(f"two, {row}: {statistics.median(one['two'][row] for one in rounds) * 1000:.0f} ms")


WAYS = {"one": (1, 1), "one with two threads": (1, 2), "two": (2, 1)}
"""Processes and threads of each."""


def _run(processes: int, threads: int) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--worker"]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_here() -> None:
    """Print the seconds of a step, by what is trained and how."""
    fabric = make_fabric("cpu", "32", started_job())
    found = {}
    for optimizer in ("adam", "lazy-adam"):
        with seeded(0, "benchmark"):
            strategy = SHAPE.strategy("uaf-hard")
        found[f"uaf-hard, {optimizer}"] = _seconds(strategy, SHAPE.batch, fabric, optimizer)
        if here().size > 1:
            found[f"uaf-hard, {optimizer}, gradients not averaged"] = _seconds(
                strategy, SHAPE.batch, fabric, optimizer, averaged=False
            )
    with seeded(0, "benchmark"):
        backbone = build_backbone(SHAPE.config("uaf-hard"), SHAPE.source_items)
        module = NextItem(backbone)
    found["pre-training, softmax"] = _seconds(module, SHAPE.windows, fabric, "adam")
    if here().size > 1:
        found["pre-training, softmax, gradients not averaged"] = _seconds(
            module, SHAPE.windows, fabric, "adam", averaged=False
        )
    if here().is_first:
        print(json.dumps(found))
    leave()


def _seconds(
    module: Trainable, make: Callable[[], Any], fabric: Any, optimizer: Any, *, averaged: bool = True
) -> float:
    """Return the median seconds of a step."""
    parameters = [parameter for parameter in module.parameters() if module.trains(parameter)]
    is_lazy = optimizer == "lazy-adam"
    adam = make_optimizer(optimizer, parameters, 1e-4, 0.0, fabric.device)
    step = Step(module, adam, fabric, by_row=is_lazy)
    module.train()
    took = []
    with gradients_by_row(module, is_lazy):
        for _ in range(WARM + STEPS):
            batch, started = make(), time.perf_counter()
            if averaged:
                step.gradients(batch)
            else:
                with fabric.no_backward_sync(step._forward):
                    step._in_parts(module.prepared(batch))
            step.optimizer.step()
            for parameter in module.parameters():
                parameter.grad = None
            took.append(time.perf_counter() - started)
    return statistics.median(took[WARM:])


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()

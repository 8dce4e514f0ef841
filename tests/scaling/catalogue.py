"""What a large catalogue costs in pre-training: bytes and seconds per step, in one process or divided between several.

    python tests/scaling/catalogue.py --items 1000000 4000000 --processes 1 2 --steps 20
    python tests/scaling/catalogue.py --items 100000000 --processes 16 --simulate

With ``--simulate`` the first of the processes is there alone: it holds and computes what it would among the others, and
what they would send is not waited for. Windows and items are drawn at random, items by Zipf's law; the loss is the
sampled one, the optimizer lazy-adam. Prints one line per size: the bytes of a process's tables with Adam's moments, its
peak memory, the median step.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from finetune_kit.data.batch import Windows
from finetune_kit.division import divide_tables
from finetune_kit.tables import gradients_by_row, trained_tables
from finetune_kit.training.optimizer import make_optimizer
from finetune_kit.training.pretrain import Lottery, NextItem
from ftkit_backbones.nextitnet import NextItNet, NextItNetOptions

WINDOWS, LENGTH, NEGATIVES = 64, 50, 2048


def measure(
    rank: int, num_processes: int, num_items: int, dim: int, steps: int, simulate: bool, results: object
) -> None:
    """Train for some steps; the first process tells what it took."""
    torch.set_num_threads(1)
    model = build(num_items, dim)
    if num_processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK=str(rank), WORLD_SIZE=str(num_processes))
        if simulate:
            from torch.testing._internal.distributed.fake_pg import FakeStore

            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_processes)
        else:
            dist.init_process_group("gloo")
        divide_tables(model, [num_items], init_device_mesh("cpu", (num_processes,)))
    start(model, num_items)
    optimizer = make_optimizer("lazy-adam", list(model.parameters()), 1e-3, 0.0, torch.device("cpu"))
    model.train()
    generator, seconds = torch.Generator().manual_seed(0), []
    with gradients_by_row(model):
        for _ in range(steps):
            batch = draw(num_items, generator)
            started = time.perf_counter()
            model(batch).backward()
            optimizer.step()
            model.zero_grad()
            seconds.append(time.perf_counter() - started)
    if rank == 0:
        tables = sum(3 * table.weight.nbytes for table in trained_tables(model))
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results.put((tables, peak, statistics.median(seconds[steps // 4 :])))
    if num_processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def build(num_items: int, dim: int) -> NextItem:
    """Return a model to pre-train that takes no memory yet."""
    with torch.device("meta"):
        backbone = NextItNet(num_items, LENGTH, NextItNetOptions(dim=dim))
        return NextItem(backbone, None, NEGATIVES)


@torch.no_grad()
def start(model: NextItem, num_items: int) -> None:
    """Give the model memory and numbers; tables are written to as a whole, so that all their memory is there."""
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.uniform_(-0.03, 0.03)
    model._negatives = Lottery(torch.ones(num_items))


def draw(num_items: int, generator: torch.Generator) -> Windows:
    """Return windows of items drawn by Zipf's law: log-uniform ids."""
    uniform = torch.rand(WINDOWS, LENGTH + 1, generator=generator, dtype=torch.float64)
    sequence = torch.exp(uniform * torch.tensor(num_items, dtype=torch.float64).log()).long().clamp(1, num_items)
    return Windows(sequence[:, :-1].contiguous(), sequence[:, 1:].contiguous())


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--simulate", action="store_true")
    given = parser.parse_args()
    print(f"{'items':>12} {'processes':>9} {'tables, MiB':>12} {'peak, MiB':>10} {'step, ms':>9}")
    for num_items in given.items:
        for num_processes in given.processes:
            results = mp.get_context("spawn").SimpleQueue()
            job = (num_processes, num_items, given.dim, given.steps, given.simulate, results)
            mp.spawn(measure, job, 1 if given.simulate else num_processes)
            tables, peak, seconds = results.get()
            line = (
                f"{num_items:12,} {num_processes:9} {tables / 2**20:12,.0f} {peak / 2**20:10,.0f} {1e3 * seconds:9.1f}"
            )
            print(line, flush=True)


if __name__ == "__main__":
    main()

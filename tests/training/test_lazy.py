from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import runner, whole_run, without_times
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import OptionError
from finetune_kit.files import read_table
from finetune_kit.pretend import pretend_device, pretend_fabric
from finetune_kit.tables import gradients_by_row
from finetune_kit.task import ItemTask
from finetune_kit.testing import TinyBackbone, random_batch, random_windows, randomise
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.optimizer import LazyAdam
from finetune_kit.training.pretrain import NextItem
from finetune_kit.training.run import LARGE_TABLE, Runner
from ftkit_baselines.finetune import FinetuneAll
from ftkit_baselines.peterrec import PeterRec
from ftkit_schedules.l2_sp import L2SP
from ftkit_uaf.hard import UafHard


def table(num_rows: int = 6, dim: int = 3, *, sparse: bool = True, seed: int = 0) -> nn.Embedding:
    torch.manual_seed(seed)
    return nn.Embedding(num_rows, dim, sparse=sparse)


def step(optimizer: torch.optim.Optimizer, module: nn.Embedding, rows: list[int]) -> None:
    """Take a step on a loss that depends on given rows, each as often as it is given."""
    optimizer.zero_grad()
    (module(torch.tensor(rows)) - 1).square().sum().backward()
    optimizer.step()


# The optimizer


def test_two_steps_by_hand_the_second_without_the_second_row() -> None:
    module = table(2, 1)
    module.weight.data = torch.tensor([[3.0], [5.0]])
    optimizer = LazyAdam([module.weight], 0.1)
    for rows, gradients in (([0, 1], [2.0, 4.0]), ([0], [1.0])):
        optimizer.zero_grad()
        (module(torch.tensor(rows)).squeeze(1) * torch.tensor(gradients)).sum().backward()
        optimizer.step()
    first = 3 - 0.1 * 2 / (4**0.5 + 1e-8)  # m/(1 − β₁) = g and v/(1 − β₂) = g² at t = 1
    m, v = 0.9 * (0.1 * 2) + 0.1 * 1, 0.999 * (0.001 * 4) + 0.001 * 1
    first -= 0.1 * (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)) ** 0.5 + 1e-8)
    assert module.weight.flatten().tolist() == pytest.approx([first, 5 - 0.1], abs=1e-6)
    state = optimizer.state[module.weight]
    assert state["exp_avg"].flatten().tolist() == pytest.approx([m, 0.1 * 4])
    assert state["exp_avg_sq"].flatten().tolist() == pytest.approx([v, 0.001 * 16])


def test_the_first_update_of_a_row_is_adams_whenever_it_comes() -> None:
    lazy, dense = table(), table(sparse=False)
    optimizers = LazyAdam([lazy.weight], 0.1, fused=True), torch.optim.Adam([dense.weight], 0.1, fused=True)
    for rows in ([1, 2], [2, 1, 2], [3]):
        for optimizer, module in zip(optimizers, (lazy, dense), strict=True):
            step(optimizer, module, rows)
    torch.testing.assert_close(lazy.weight[3], dense.weight[3], atol=1e-7, rtol=1e-6)
    assert not torch.allclose(lazy.weight[1], dense.weight[1], atol=1e-3)  # Adam has moved it on in the third step


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=4))
def test_rows_that_were_not_looked_up_stay_byte_identical_and_so_do_their_moments(steps: list[list[int]]) -> None:
    module = table()
    optimizer = LazyAdam([module.weight], 0.1, fused=True)
    step(optimizer, module, list(range(6)))
    for rows in steps:
        kept = [row for row in range(6) if row not in rows]
        held = module.weight.detach(), *list(optimizer.state[module.weight].values())[1:]
        before = [tensor.clone() for tensor in held]
        step(optimizer, module, rows)
        for was, now in zip(before, held, strict=True):
            assert torch.equal(was[kept], now[kept])
            assert (was[rows] != now[rows]).any(dim=1).all()


@settings(max_examples=15, deadline=None)
@given(repeated=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=5), fused=st.booleans())
def test_where_every_step_looks_up_all_rows_it_is_adam(repeated: list[list[int]], fused: bool) -> None:
    lazy, dense = table(), table(sparse=False)
    one = LazyAdam([lazy.weight], 0.1, fused=fused)
    other = torch.optim.Adam([dense.weight], 0.1, fused=fused)
    for rows in repeated:
        step(one, lazy, [*range(6), *rows])
        step(other, dense, [*range(6), *rows])
    torch.testing.assert_close(lazy.weight, dense.weight, atol=1e-5, rtol=1e-5)


def test_what_has_a_dense_gradient_is_exactly_adams() -> None:
    lazy, dense = table(sparse=False), table(sparse=False)
    one = LazyAdam([lazy.weight], 0.1, fused=True)
    other = torch.optim.Adam([dense.weight], 0.1, fused=True)
    for rows in ([1, 2], [3]):
        step(one, lazy, rows)
        step(other, dense, rows)
    assert torch.equal(lazy.weight, dense.weight)


def test_a_parameter_may_have_one_kind_of_gradient_now_and_the_other_later() -> None:
    lazy, dense = table(), table(sparse=False)
    one, other = LazyAdam([lazy.weight], 0.1, fused=True), torch.optim.Adam([dense.weight], 0.1, fused=True)
    for lazy.sparse in (True, False, True, False):
        step(one, lazy, list(range(6)))
        step(other, dense, list(range(6)))
    torch.testing.assert_close(lazy.weight, dense.weight, atol=1e-5, rtol=1e-5)


def test_a_loss_scale_is_out_of_the_gradients_and_a_step_that_overflows_is_skipped() -> None:
    scaled, plain = table(), table()
    one, other = LazyAdam([scaled.weight], 0.1, fused=True), LazyAdam([plain.weight], 0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor in (1.0, float("inf"), 2.0):
        one.zero_grad()
        scaler.scale((scaled(torch.tensor([1, 1, 2])) * factor).sum()).backward()
        scaler.step(one)
        scaler.update()
        if factor < float("inf"):
            other.zero_grad()
            (plain(torch.tensor([1, 1, 2])) * factor).sum().backward()
            other.step()
    torch.testing.assert_close(scaled.weight, plain.weight, atol=1e-6, rtol=1e-6)


def test_it_runs_on_an_accelerator() -> None:
    here = table()
    step(LazyAdam([here.weight], 0.1), here, [1, 2, 2])
    with pretend_device() as device:
        there = table().to(device)
        optimizer = LazyAdam([there.weight], 0.1)
        (there(torch.tensor([1, 2, 2]).to(device)) - 1).square().sum().backward()
        assert there.weight.grad is not None and there.weight.grad.is_sparse
        optimizer.step()
        torch.testing.assert_close(there.weight.detach().cpu(), here.weight.detach())


# Memory and time


class Largest(TorchDispatchMode):
    """Finds how many numbers the largest new tensor of a block holds, but for those that are there before."""

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()
        self.held = {tensor.untyped_storage().data_ptr() for tensor in held}
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                tensor = tensor._values() if tensor.is_sparse else tensor
                if tensor.untyped_storage().data_ptr() not in self.held:
                    self.numel = max(self.numel, tensor.numel())
        return made


NUM_ITEMS, DIM = 5000, 8


def pretraining() -> tuple[Trainable, Any]:
    backbone = randomise(TinyBackbone(NUM_ITEMS, 12, TinyBackbone.Options(dim=DIM)))
    return NextItem(backbone, torch.ones(NUM_ITEMS), num_negatives=20), random_windows(4, 7, NUM_ITEMS)


def finetuning(kind: type) -> Callable[[], tuple[Trainable, Any]]:
    def build() -> tuple[Trainable, Any]:
        backbone = randomise(TinyBackbone(NUM_ITEMS, 12, TinyBackbone.Options(dim=DIM)))
        return kind(backbone, ItemTask(DIM, NUM_ITEMS)), random_batch(4, 7, NUM_ITEMS, NUM_ITEMS)

    return build


@pytest.mark.parametrize(
    ("build", "has_large_tensors"),
    [
        (pretraining, False),
        (finetuning(FinetuneAll), False),
        (finetuning(UafHard), False),
        (finetuning(PeterRec), False),
        (finetuning(L2SP), True),  # its penalty is on all rows
    ],
)
def test_a_step_makes_nothing_as_large_as_a_table(
    build: Callable[[], tuple[Trainable, Any]], has_large_tensors: bool
) -> None:
    module, batch = build()
    optimizer = LazyAdam([p for p in module.parameters() if module.trains(p)], 0.01, fused=True)
    with gradients_by_row(module):
        for _ in range(2):  # the first makes the moments
            held = [*module.parameters(), *module.buffers()]
            held += [tensor for state in optimizer.state.values() for tensor in state.values()]
            with Largest(held) as largest:
                module(batch).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert (largest.numel >= NUM_ITEMS * DIM) == has_large_tensors
    assert has_large_tensors or largest.numel <= NUM_ITEMS + 1  # the bias, one number per item


# Whole runs


LAZY: dict[str, dict[str, Any]] = {
    "pretrain": {"optimizer": "lazy-adam", "loss": "sampled-softmax", "num_negatives": 20, "epochs": 2},
    "finetune": {"optimizer": "lazy-adam", "epochs": 3},
}


class Interrupted(Exception):
    """A crash."""


@pytest.fixture
def updated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the tables that were updated by rows."""
    shapes: list[tuple[int, ...]] = []
    original = LazyAdam._update_rows

    def update(self: LazyAdam, parameter: nn.Parameter, *others: Any) -> None:
        shapes.append(tuple(parameter.shape))
        original(self, parameter, *others)

    monkeypatch.setattr(LazyAdam, "_update_rows", update)
    yield shapes


@pytest.mark.parametrize("name", ["finetune-all", "uaf-hard", "mtl", "peterrec"])
def test_a_run_that_crashed_goes_on_to_identical_weights(
    name: str, dataset: Dataset, tmp_path: Path, updated: list[tuple[int, ...]]
) -> None:
    def crash(tracker: Any, stage: str, values: Mapping[str, float]) -> None:
        if values["epoch"] == 1:
            raise Interrupted

    whole, folder = whole_run(runner(dataset, name, **LAZY), tmp_path / "whole")
    crashed = runner(dataset, name, **LAZY)
    stages = 2 if crashed.build_strategy(None).needs_pretrained else 1
    for _ in range(stages):  # one crash in each, in its first epoch, then on
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr("ftkit_trackers.jsonl.JsonLines.record", crash)
            whole_run(crashed, tmp_path / "crashed")
        crashed = runner(dataset, name, **LAZY)
        crashed.resume = True
        if stages == 2:
            crashed.pretrain(tmp_path / "crashed")
    resumed, other = whole_run(crashed, tmp_path / "crashed")
    assert without_times(resumed) == without_times(whole)
    assert (other / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    source, target = (dataset.num_source_items + 1, 8), (dataset.num_target_items, 8)
    output = {(dataset.num_source_items, 8)} if stages == 2 else set()  # mtl learns the source by the exact softmax
    assert set(updated) == {source, target} | output


def test_a_run_on_an_accelerator_gives_the_numbers_of_the_cpu(dataset: Dataset, tmp_path: Path) -> None:
    on_cpu, _ = whole_run(runner(dataset, "finetune-all", **LAZY), tmp_path / "cpu")
    with pretend_device():
        on_device, _ = whole_run(runner(dataset, "finetune-all", pretend_fabric(), **LAZY), tmp_path / "device")
    assert without_times(on_device) == without_times(on_cpu)


def valid_losses(made: Runner, folder: Path) -> list[float]:
    """Pre-train and return the losses on held-out users, epoch by epoch."""
    return read_table(made.pretrain(folder) / "history.parquet")["valid_loss"].tolist()


def test_it_learns_about_as_well_as_adam_in_mixed_precision_too(dataset: Dataset, tmp_path: Path) -> None:
    losses = {}
    for optimizer, precision in (("adam", "32"), ("lazy-adam", "32"), ("lazy-adam", "bf16-mixed")):
        options = {"optimizer": optimizer, "epochs": 8, "learning_rate": 0.01, "batch_size": 32, "patience": 0}
        made = runner(dataset, fabric=make_fabric("cpu", precision), pretrain=options)
        losses[optimizer, precision] = valid_losses(made, tmp_path / f"{optimizer}-{precision}")
    adam = losses.pop(("adam", "32"))
    assert min(adam) < adam[0] - 0.2
    for lazy in losses.values():
        assert lazy != adam
        assert min(lazy) == pytest.approx(min(adam), abs=0.05)


# What the user is told


def test_weight_decay_is_refused_beside_it() -> None:
    with pytest.raises(OptionError) as raised:
        resolve_config({"finetune": {"optimizer": "lazy-adam", "weight_decay": "0.01"}})
    assert str(raised.value) == (
        "finetune: weight_decay = 0.01 moves every row of a table in every step, which optimizer = lazy-adam is there "
        "to avoid; give optimizer=adam or weight_decay=0"
    )


def test_large_tables_that_adam_updates_whole_are_told(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset.num_source_items < LARGE_TABLE
    monkeypatch.setattr("finetune_kit.training.run.LARGE_TABLE", dataset.num_source_items)
    told = {}
    for name, sections in {
        "adam": {},
        "lazy": LAZY,
        "decay": {"finetune": {"weight_decay": 0.1}, "pretrain": LAZY["pretrain"]},
    }.items():
        made = runner(dataset, "finetune-all", **sections)
        made.refuse_early()
        told[name] = [line for line in made.progress.lines if "optimizer" in line]
    assert told["lazy"] == told["decay"] == []
    assert told["adam"] == [
        f"{stage}.optimizer = adam updates all {rows:,} rows of a table in every step; lazy-adam only those that the "
        f"step looks up (ftkit options {stage})"
        for stage, rows in (("pretrain", dataset.num_source_items), ("finetune", dataset.num_source_items + 1))
    ]

"""How work is dealt to processes, by whom a job was started, and what is refused."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune_kit.data.batch import Batch, Share
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.gathering import gathered
from finetune_kit.processes import Job, Processes, slices, started_job
from finetune_kit.strategy import Encoded, Strategy
from finetune_kit.task import ItemTask
from finetune_kit.testing import TinyBackbone, batches, random_batch
from finetune_kit.training.device import checked_device, make_fabric
from finetune_kit.training.optimizer import make_optimizer
from finetune_kit.training.step import Step

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}


@given(st.integers(0, 50), st.integers(1, 9))
def test_everything_is_in_one_slice(total, number):
    found = [n for part in slices(total, number) for n in range(total)[part]]
    assert found == list(range(total))
    lengths = [part.stop - part.start for part in slices(total, number)]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(0, 20), st.integers(1, 5))
def test_every_part_is_dealt_to_one_process(total, number):
    dealt = [part for rank in range(number) for part in Processes(rank, number).dealt(range(total))]
    assert sorted(dealt) == list(range(total))


def test_one_process_sends_nothing():
    one = Processes()
    assert (one.alone(lambda: 3), one.collected([1, 2]), one.largest(4, 5)) == (3, [1, 2], [4, 5])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Job(4, 2, 2)),
        ({**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3"}, Job(6, 2, 3)),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "6"}, None),  # a batch script: nobody started the other five
    ],
)
def test_a_job_is_known_by_its_launcher(environment, expected):
    assert started_job(environment) == expected


def test_two_processes_are_not_put_on_one_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionError, match="2 processes need 2 devices"):
        checked_device("cuda", "32", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("cuda", "32", 2) == ("cuda", 0)
    with pytest.raises(OptionError, match="'cuda:1' is one"):
        checked_device("cuda:1", "32", 2)


class Plain(Strategy):
    def build(self) -> None:
        self.extra = nn.Linear(1, 1)


class OwnForward(Plain):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch)


def plain(kind: type[Strategy] = Plain) -> Strategy:
    return kind(TinyBackbone(20, 8), ItemTask(TinyBackbone.Options().dim, 9))


@given(st.integers(1, 9), st.integers(1, 4))
def test_draws_of_shares_are_those_of_the_whole_batch(num_users, number):
    batch = random_batch(num_users)
    whole = plain().draw(batch, 3, 2)
    assert torch.equal(whole, torch.rand(num_users, 3, 2, generator=plain().noise))
    for part in slices(num_users, number):
        share = replace(batch.of_users(part), share=Share(part.start, part.stop, num_users))
        assert torch.equal(plain().draw(share, 3, 2), whole[part])


@given(batches(max_users=6, max_windows=5), st.integers(1, 8))
def test_parts_have_every_user_instance_and_window_once(batch, number):
    parts = plain().parts(batch, number)
    assert len(parts) == min(number, len(batch.user), len(batch.source))
    assert torch.equal(torch.cat([part.user for part, _ in parts]), batch.user)
    assert torch.equal(torch.cat([part.source.labels for part, _ in parts]), batch.source.labels)
    assert sum(weight for _, weight in parts) == pytest.approx(1)
    pairs = [(part.user[part.row].tolist(), part.positive.tolist()) for part, _ in parts]
    found = sorted(pair for users, items in pairs for pair in zip(users, items, strict=True))
    assert found == sorted(zip(batch.user[batch.row].tolist(), batch.positive.tolist(), strict=True))


def test_a_forward_of_its_own_is_not_shared():
    with pytest.raises(PluginError, match="OwnForward overrides `forward`"):
        plain(OwnForward).shared_loss(random_batch(), Processes(0, 2))


def test_what_is_not_one_row_per_user_is_refused():
    with pytest.raises(PluginError, match=r"Encoded.gates is \(\) for 3 users"):
        gathered(Encoded(torch.zeros(3, 2), gates=torch.tensor(0.5)), 3, 6, Processes(0, 2))


class Stored:
    """Counts the bytes that autograd keeps at once."""

    def __enter__(self) -> Stored:
        self.now = self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept[0])
        self.hooks.__enter__()
        return self

    def keep(self, tensor: Tensor) -> Any:
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        token = Token()
        weakref.finalize(token, self.forget, size)
        return tensor, token

    def forget(self, size: int) -> None:
        self.now -= size

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class Token:
    pass


def test_a_batch_in_parts_takes_less_memory():
    most = {}
    for accumulate in (1, 8):
        strategy = plain()
        adam = make_optimizer("adam", strategy.parameters(), 1e-2, 0.0, torch.device("cpu"))
        step = Step(strategy, adam, make_fabric("cpu"), accumulate=accumulate)
        with Stored() as stored:
            step.gradients(random_batch(256))
        most[accumulate] = stored.most
    assert most[8] < most[1] / 4, most

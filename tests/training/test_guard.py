import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune_kit.errors import FinetuneKitError
from finetune_kit.pretend import pretend_device, pretend_fabric
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.guard import LOOK_EVERY, Guard, gradient_norm
from finetune_kit.training.loop import Loop


class Users:
    """A batch of users of one number each; the loss can be told to go wrong for one of them."""

    def __init__(self, user: list[int]) -> None:
        self.user = torch.tensor(user)

    def __len__(self) -> int:
        return len(self.user)

    def to(self, device: torch.device) -> Tensor:
        return self.user.to(device).float()


class Epoch:
    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def epoch(self, generator: torch.Generator):
        yield from (Users([step, 1000 + step]) for step in range(1, self.num_steps + 1))

    def num_batches(self) -> int:
        return self.num_steps


class Faulty(Trainable):
    """Its loss, or its gradient alone, is no number in the steps with a user."""

    def __init__(self, user: int, in_gradient: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.user, self.in_gradient, self.steps = user, in_gradient, 0

    def forward(self, batch: Tensor) -> Tensor:
        self.steps += 1
        is_there = (batch == self.user).any().float()  # no branch: an accelerator is not waited for
        if self.in_gradient:  # the root's slope at 0 is infinite
            return ((1 - is_there) + self.weight * is_there - is_there).abs().sqrt().sum() + self.weight.sum()
        return self.weight.square().sum() / (1 - is_there)


def told(module: Faulty, fabric=None, checkpoint: Path | None = None) -> str:
    loop = Loop(
        module,
        fabric or make_fabric("cpu"),
        "finetune",
        learning_rate=0.0 if module.in_gradient else 0.1,
        epochs=1,
        patience=0,
        monitor="value",
        checkpoint=checkpoint,
    )
    with pytest.raises(FinetuneKitError) as caught:
        loop.fit(Epoch(LOOK_EVERY * 2 + 9), lambda: {"value": 0.0})
    return str(caught.value)


@pytest.mark.parametrize("user", [1, 17, LOOK_EVERY + 1, LOOK_EVERY * 2 + 9])
def test_an_infinite_loss_stops_a_run_at_its_step_naming_the_users(user):
    module = Faulty(user)
    assert told(module) == (
        f"finetune: the loss became inf in epoch 1, step {user} (users {user}, {1000 + user} by their ids in "
        "users.parquet); no good state was saved yet; lower finetune.learning_rate (0.1), and start anew"
    )
    assert module.steps == user
    assert torch.isfinite(module.weight).all(), "the update with a gradient that is no number was made"


@pytest.mark.parametrize("user", [1, LOOK_EVERY + 3])
def test_a_gradient_that_is_no_number_stops_a_run_while_the_loss_is_one(user):
    message = told(Faulty(user, in_gradient=True))
    assert "finetune: the gradient's norm became " in message
    assert f"epoch 1, step {user} " in message


@pytest.mark.parametrize("user", [17, LOOK_EVERY + 1, LOOK_EVERY * 2 + 9])
def test_an_accelerator_is_looked_at_now_and_then_and_the_step_is_found_all_the_same(user):
    with pretend_device():
        module = Faulty(user)
        message = told(module, pretend_fabric())
    assert f"epoch 1, step {user} (users {user}, {1000 + user} by" in message
    assert module.steps == min(-(-user // LOOK_EVERY) * LOOK_EVERY, LOOK_EVERY * 2 + 9)


def test_the_last_good_checkpoint_is_named(tmp_path):
    checkpoint = tmp_path / "state.safetensors"
    checkpoint.touch()
    assert f"the last good state is in {checkpoint}; lower" in told(Faulty(2), checkpoint=checkpoint)


def test_gradients_that_a_scaler_scales_may_overflow():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, torch.inf])
    guard = Guard("finetune", 1, 0.1, has_scaler=True)
    guard.see(torch.tensor(0.5), [weight], Users([1]))
    with pytest.raises(FinetuneKitError, match="use --precision bf16-mixed or 32"):
        guard.see(torch.tensor(math.nan), [weight], Users([1]))


def test_large_tables_and_sparse_gradients_are_left_out_of_the_norm():
    table = torch.nn.Parameter(torch.zeros(1 << 10, 1 << 7))
    table.grad = torch.full_like(table, torch.inf)
    rows = torch.nn.Parameter(torch.zeros(4, 2))
    rows.grad = torch.ones(4, 2).to_sparse()
    bias = torch.nn.Parameter(torch.zeros(4))
    bias.grad = torch.tensor([2.0, -3.0, 0.0, 6.0])
    assert gradient_norm([table, rows, bias], bias) == 7
    assert gradient_norm([], bias) == 0


def test_training_that_asks_for_more_memory_than_there_is_says_what_to_lower():
    class Greedy(Faulty):
        def forward(self, batch: Tensor) -> Tensor:
            return super().forward(batch) + torch.empty(1 << 58).sum()

    assert told(Greedy(1)).endswith("; lower finetune.batch_size, data.max_length or finetune.num_negatives")

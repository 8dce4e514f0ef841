"""A training that is stopped within an epoch, and goes on to the same end."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_kit.errors import CheckpointError
from finetune_kit.interruption import Interrupted, Shield
from finetune_kit.seeding import generator
from finetune_kit.tables import gradients_by_row
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.loop import Fitted, Loop
from finetune_kit.training.state import read_state, write_state

STEPS = 4


class Table(Trainable):
    """A table of items under dropout and noise of its own; something happens before one of its steps."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.items = nn.Embedding(20, 4)
            self.layer = nn.Sequential(nn.Dropout(0.3), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.noise = generator(0, "noise")
        self.steps = 0
        self.events: dict[int, list[int]] = {}

    def start_epoch(self, epoch: int) -> None:
        self.noise = generator(0, "noise", epoch)

    def forward(self, batch: Tensor) -> Tensor:
        self.steps += 1
        for number in self.events.get(self.steps, []):
            os.kill(os.getpid(), number)
        hidden = self.items(batch)
        return (self.layer(hidden + torch.rand(hidden.shape, generator=self.noise)) - 1).square().mean()


class Items:
    """Random items, drawn from the epoch's generator."""

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(STEPS):
            yield torch.randint(20, (6,), generator=generator)

    def num_batches(self) -> int:
        return STEPS


def fit(module: Table, checkpoint: Path | None = None, *, resume: bool = False, **options: object) -> Fitted:
    def evaluate() -> dict[str, float]:
        return {"value": -module.items.weight.detach().square().sum().item()}

    settings = {"learning_rate": 0.05, "epochs": 3, "patience": 0, "monitor": "value", **options}
    return Loop(module, make_fabric("cpu"), "finetune", checkpoint=checkpoint, **settings).fit(
        Items(), evaluate, resume=resume
    )


def outcome(module: Table, fitted: Fitted) -> tuple[list[Mapping[str, float]], int, int, list[bytes]]:
    history = [{key: value for key, value in record.items() if key != "seconds"} for record in fitted.history]
    weights = [tensor.numpy().tobytes() for tensor in module.trained_state().values()]
    return history, fitted.best_epoch, fitted.num_instances, weights


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 4, 6, 12])
def test_a_training_that_a_signal_ended_in_any_step_goes_on_to_the_same_end(
    tmp_path: Path, step: int, number: int, optimizer: str
) -> None:
    whole = Table()
    expected = outcome(whole, fit(whole, optimizer=optimizer))
    stopped, checkpoint = Table(), tmp_path / "state.safetensors"
    stopped.events = {step: [number]}
    with pytest.raises(Interrupted) as caught:
        fit(stopped, checkpoint, optimizer=optimizer)
    assert caught.value.number == number
    assert stopped.steps == step, "the step was done to its end, and no other one begun"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = Table()
    assert outcome(resumed, fit(resumed, checkpoint, resume=True, optimizer=optimizer)) == expected
    assert stopped.steps + resumed.steps == 3 * STEPS


def test_a_training_may_be_ended_in_every_single_step(tmp_path: Path) -> None:
    whole, checkpoint = Table(), tmp_path / "state.safetensors"
    expected = outcome(whole, fit(whole))
    for _ in range(3 * STEPS - 1):
        module = Table()
        module.events = {1: [signal.SIGTERM]}
        with pytest.raises(Interrupted):
            fit(module, checkpoint, resume=True)
    module = Table()
    assert outcome(module, fit(module, checkpoint, resume=True)) == expected
    assert module.steps == 1


def test_what_was_saved_within_an_epoch_serves_a_training_that_was_killed(tmp_path: Path) -> None:
    whole, checkpoint = Table(), tmp_path / "state.safetensors"
    expected = outcome(whole, fit(whole))
    killed = Table()
    killed.events = {7: [signal.SIGALRM]}

    def die(number: int, frame: object) -> None:
        raise RuntimeError("killed")

    before = signal.signal(signal.SIGALRM, die)
    try:
        with pytest.raises(RuntimeError, match="killed"):
            fit(killed, checkpoint, save_minutes=1e-9)
    finally:
        signal.signal(signal.SIGALRM, before)
    resumed = Table()
    assert outcome(resumed, fit(resumed, checkpoint, resume=True)) == expected
    assert resumed.steps == 3 * STEPS - 6, "six steps were saved"


def test_a_second_signal_breaks_the_step_off_and_what_was_saved_before_it_stays(tmp_path: Path) -> None:
    module, checkpoint = Table(), tmp_path / "state.safetensors"
    module.events = {6: [signal.SIGINT, signal.SIGINT]}
    with pytest.raises(Interrupted):
        fit(module, checkpoint)
    _, facts = read_state(checkpoint, ("now",))
    assert len(facts["fitted"]["history"]) == 1
    assert "begun" not in facts


def test_a_signal_in_the_evaluation_costs_no_step(tmp_path: Path) -> None:
    whole, checkpoint = Table(), tmp_path / "state.safetensors"
    expected = outcome(whole, fit(whole))

    def evaluate() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    settings = {"learning_rate": 0.05, "epochs": 3, "patience": 0, "monitor": "value", "checkpoint": checkpoint}
    with pytest.raises(KeyboardInterrupt):
        Loop(Table(), make_fabric("cpu"), "finetune", **settings).fit(Items(), evaluate)
    resumed = Table()
    assert outcome(resumed, fit(resumed, checkpoint, resume=True)) == expected
    assert resumed.steps == 2 * STEPS


def test_the_state_of_a_loss_that_is_no_number_takes_the_place_of_none(tmp_path: Path) -> None:
    module, checkpoint = Table(), tmp_path / "state.safetensors"
    module.events = {6: [signal.SIGINT]}
    module.layer[2].register_forward_hook(lambda part, inputs, out: out * torch.nan if module.steps == 6 else out)
    with pytest.raises(KeyboardInterrupt):  # which waited while the step failed
        fit(module, checkpoint)
    assert "begun" not in read_state(checkpoint, ("now",))[1]


def test_signals_that_were_ignored_stay_so_and_other_handlers_are_asked() -> None:
    came: list[int] = []
    before = {signal.SIGTERM: signal.SIG_IGN, signal.SIGINT: lambda number, frame: came.append(number)}
    before = {number: signal.signal(number, handler) for number, handler in before.items()}
    try:
        with Shield() as shield:
            with shield.whole():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                assert came == []
            assert came == [signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    tensors = {"weight": torch.arange(6.0), "step": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)}
    write_state(path, {"now": tensors, "best": {}}, {"fitted": {"best_epoch": 2}})
    return path


def test_a_state_is_read_as_it_was_written(state: Path) -> None:
    parts, facts = read_state(state, ("now", "best"))
    assert facts == {"fitted": {"best_epoch": 2}}
    assert parts["best"] == {}
    assert torch.equal(parts["now"]["weight"], torch.arange(6.0))


def test_no_byte_of_a_state_can_be_changed_or_be_missing(state: Path) -> None:
    whole = state.read_bytes()
    torn = [whole[:length] for length in (0, 7, 8, len(whole) // 2, len(whole) - 1)]
    edited = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(8, len(whole))]
    for content in (*torn, *edited, whole + b"x"):
        state.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_state(state, ("now", "best"))
        assert str(caught.value).startswith(f"{state} ")
        assert str(caught.value).endswith("; delete it to start over")


def test_rows_that_lazy_adam_has_not_seen_have_no_moments_after_going_on(tmp_path: Path) -> None:
    module, checkpoint = Table(), tmp_path / "state.safetensors"
    module.events = {2: [signal.SIGINT]}
    with pytest.raises(KeyboardInterrupt), gradients_by_row(module):
        fit(module, checkpoint, optimizer="lazy-adam")
    parts, _ = read_state(checkpoint, ("adam",))
    moments = parts["adam"]["0/exp_avg"]
    assert 0 < (moments != 0).any(dim=1).sum() <= 12 < len(moments)

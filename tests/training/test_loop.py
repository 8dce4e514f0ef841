from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_kit.errors import CheckpointError, FinetuneKitError
from finetune_kit.progress import Progress
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.loop import Fitted, Loop


class Line(Trainable):
    """Fits a line, with dropout, buffers, a layer that is frozen, and one that is trained alone for some epochs."""

    def __init__(self, probing: int = 0) -> None:
        super().__init__()
        self.probing = probing
        self.rest = nn.Linear(3, 3)
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.freeze(self.rest)
        self.epochs: list[int] = []
        self.poison = False

    @property
    def schedule_epochs(self) -> int:
        return self.probing

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)
        if epoch <= self.probing:
            self.let_rest(self.layer, but=[self.layer[3]])
        else:
            self.wake()

    def forward(self, batch: Tensor) -> Tensor:
        loss = (self.layer(self.rest(batch)).squeeze(1) - batch.sum(1)).square().mean()
        return loss * torch.nan if self.poison else loss


class Rows:
    """Random rows, drawn from the epoch's generator."""

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.randn(8, 3, generator=generator)

    def num_batches(self) -> int:
        return 3


def line(probing: int = 0) -> Line:
    torch.manual_seed(0)
    return Line(probing)


def loop(module: Line, epochs: int = 4, patience: int = 0, **options: object) -> Loop:
    return Loop(
        module,
        make_fabric("cpu"),
        "finetune",
        learning_rate=0.05,
        epochs=epochs,
        patience=patience,
        monitor="value",
        **options,
    )


def values(*scripted: float) -> Iterator[dict[str, float]]:
    return iter([{"value": value} for value in scripted])


def fit(module: Line, scripted: tuple[float, ...], **options: object) -> tuple[Fitted, list[dict[str, Tensor]]]:
    """Train against scripted validation values; return also the trained state at each evaluation."""
    script, seen = values(*scripted), []

    def evaluate() -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in module.trained_state().items()})
        return next(script)

    return loop(module, epochs=len(scripted), **options).fit(Rows(), evaluate), seen


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_seconds(fitted: Fitted) -> list[dict[str, float]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in fitted.history]


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    module = line()
    fitted, seen = fit(module, (0.1, 0.5, 0.3, 0.5))
    assert fitted.best_epoch == 2  # the first of equals
    assert same(module.trained_state(), seen[1])
    assert not same(seen[1], seen[3])
    assert not module.training
    assert module.epochs == [1, 2, 3, 4]
    assert fitted.num_instances == 4 * 3 * 8


def test_for_losses_lower_is_better() -> None:
    fitted, _ = fit(line(), (0.3, 0.1, 0.2), lower_is_better=True)
    assert fitted.best_epoch == 2


def test_training_stops_after_so_many_epochs_without_a_better_value() -> None:
    fitted, _ = fit(line(), (0.1, 0.5, 0.4, 0.5, 0.9, 1.0), patience=2)
    assert [record["value"] for record in fitted.history] == [0.1, 0.5, 0.4, 0.5]


def test_patience_0_trains_to_the_end() -> None:
    fitted, _ = fit(line(), (0.9, 0.1, 0.1, 0.1, 0.1), patience=0)
    assert len(fitted.history) == 5


@pytest.mark.parametrize(("probing", "length"), [(0, 4), (1, 4), (4, 6), (9, 7)])
def test_patience_counts_from_the_end_of_a_schedule_on(probing: int, length: int) -> None:
    fitted, _ = fit(line(probing), (0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0), patience=2)
    assert len(fitted.history) == length
    assert fitted.best_epoch == 2  # an epoch of the schedule may be the best


def test_what_rests_is_not_touched_by_weight_decay_either_and_is_saved_with_the_best_epoch() -> None:
    module = line(probing=2)
    _, seen = fit(module, (0.1, 0.2, 0.3), weight_decay=0.1)
    names = {"layer.3.weight", "layer.3.bias"}
    assert [
        {name for name in later if not torch.equal(earlier[name], later[name])} for earlier, later in pairwise(seen)
    ] == [
        names,
        set(seen[0]),
    ]
    assert seen[0].keys() == module.trained_state().keys() > names


def test_what_rests_before_the_first_epoch_is_trained_once_it_wakes() -> None:
    module, other = line(), line()
    module.let_rest(module.layer)
    fit(module, (0.1,))
    fit(other, (0.1,))
    assert same(module.trained_state(), other.trained_state())


def test_fewer_epochs_than_the_schedule_has_is_said() -> None:
    class Told(Progress):
        def say(self, text: str) -> None:
            lines.append(text)

    lines: list[str] = []
    for probing in (1, 2, 3):
        fit(line(probing), (0.1, 0.2), progress=Told())
    assert lines == [
        f"warning: finetune.epochs = 2, but everything trains only after {probing} epochs; set epochs above {probing}"
        for probing in (2, 3)
    ]


def test_the_observer_is_told_each_epoch() -> None:
    records = []
    fitted, _ = fit(line(), (0.1, 0.2), observe=records.append)
    assert records == fitted.history
    assert [set(record) for record in records] == [{"epoch", "train_loss", "value", "seconds"}] * 2


def test_training_lowers_the_loss_and_leaves_what_is_frozen() -> None:
    module = line()
    frozen = module.rest.weight.clone()
    fitted, _ = fit(module, tuple(range(15)))
    assert fitted.history[-1]["train_loss"] < 0.7 * fitted.history[0]["train_loss"]
    assert torch.equal(module.rest.weight, frozen)


def test_a_loss_that_is_no_number_is_a_clear_error() -> None:
    module = line()
    module.poison = True
    with pytest.raises(
        FinetuneKitError, match=r"finetune: the loss became nan in epoch 1, step 1 .*; lower finetune.learning_rate"
    ):
        fit(module, (0.1,))


def test_training_is_a_function_of_the_seed() -> None:
    results = []
    for seed in (0, 0, 1):
        module = line()
        fitted, _ = fit(module, (0.1, 0.2), seed=seed)
        results.append((without_seconds(fitted), module.trained_state()))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert not same(results[0][1], results[2][1])


class Interrupted(Exception):
    """A crash."""


@pytest.mark.parametrize("probing", [0, 3])
@pytest.mark.parametrize("crash_in", [2, 3, 4])
def test_going_on_after_a_crash_gives_identical_weights_and_history(
    tmp_path: Path, crash_in: int, probing: int
) -> None:
    scripted = (0.1, 0.4, 0.3, 0.2, 0.6)
    whole = line(probing)
    expected, _ = fit(whole, scripted, checkpoint=tmp_path / "whole.safetensors")

    def crash(record: Mapping[str, float]) -> None:
        if record["epoch"] == crash_in:
            raise Interrupted

    checkpoint = tmp_path / "last" / "state.safetensors"
    with pytest.raises(Interrupted):
        fit(line(probing), scripted, checkpoint=checkpoint, observe=crash)
    module, script = line(probing), values(*scripted[crash_in - 1 :])
    resumed = loop(module, epochs=5, checkpoint=checkpoint).fit(Rows(), lambda: next(script), resume=True)
    assert without_seconds(resumed) == without_seconds(expected)
    assert (resumed.best_epoch, resumed.num_instances) == (expected.best_epoch, expected.num_instances)
    assert same(module.trained_state(), whole.trained_state())
    assert module.epochs == list(range(crash_in, 6))


def test_going_on_after_the_end_changes_nothing(tmp_path: Path) -> None:
    module, checkpoint = line(), tmp_path / "state.safetensors"
    expected, _ = fit(module, (0.5, 0.4, 0.3), patience=1, checkpoint=checkpoint)
    again = line()
    resumed = loop(again, epochs=3, patience=1, checkpoint=checkpoint).fit(
        Rows(), lambda: pytest.fail("trained"), resume=True
    )
    assert vars(resumed) == vars(expected)
    assert same(again.trained_state(), module.trained_state())


def test_without_resume_an_old_checkpoint_is_not_read(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    checkpoint.write_bytes(b"of another run")
    assert len(fit(line(), (0.1, 0.2), checkpoint=checkpoint)[0].history) == 2


def test_a_damaged_checkpoint_is_refused_saying_what_to_do(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    checkpoint.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"state\.safetensors can't be read: .*; delete it to start over"):
        loop(line(), checkpoint=checkpoint).fit(Rows(), dict, resume=True)


def test_a_checkpoint_of_other_data_is_refused_naming_both(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    script = values(0.1, 0.2)
    loop(line(), epochs=2, checkpoint=checkpoint, bound_to={"dataset": "old"}).fit(Rows(), lambda: next(script))
    other = loop(line(), epochs=3, checkpoint=checkpoint, bound_to={"dataset": "new"})
    with pytest.raises(CheckpointError, match=r"other values: dataset was 'old', now 'new'; give those, or delete it"):
        other.fit(Rows(), dict, resume=True)


def test_a_checkpoint_that_was_bound_to_more_or_to_less_is_refused_naming_what(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    script = values(0.1, 0.2)
    bound_to = {"dataset": "one", "start": "run"}
    loop(line(), epochs=2, checkpoint=checkpoint, bound_to=bound_to).fit(Rows(), lambda: next(script))
    for now, said in (
        ({"dataset": "one"}, "start was 'run', now not there"),
        ({**bound_to, "base": "b"}, "base was not there, now 'b'"),
    ):
        other = loop(line(), epochs=3, checkpoint=checkpoint, bound_to=now)
        with pytest.raises(CheckpointError, match=f"{said}; give those, or delete it"):
            other.fit(Rows(), dict, resume=True)

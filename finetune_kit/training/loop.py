"""The loop that pre-training and fine-tuning share: train, evaluate, keep the best, stop early, go on after a crash."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune_kit.config import differences
from finetune_kit.environment import versions
from finetune_kit.interruption import Shield
from finetune_kit.memory import enough_memory
from finetune_kit.processes import here
from finetune_kit.progress import Progress
from finetune_kit.sections import Optimizer
from finetune_kit.seeding import derive_seed
from finetune_kit.tables import gradients_by_row
from finetune_kit.trainable import Trainable
from finetune_kit.training.compilation import compile_blocks
from finetune_kit.training.guard import LOOK_EVERY, Guard
from finetune_kit.training.optimizer import make_optimizer
from finetune_kit.training.state import (
    Begun,
    random_states,
    read_state,
    refuse_other_state,
    set_random_states,
    write_state,
)
from finetune_kit.training.step import Step

TRAIN_ON_LESS = {
    "pretrain": "lower pretrain.batch_size or data.max_length, or set pretrain.loss=sampled-softmax",
    "finetune": "lower finetune.batch_size, data.max_length or finetune.num_negatives",
}
"""What to do when memory runs out in a stage."""


class Batches(Protocol):
    """Where the loop gets its batches."""

    def epoch(self, generator: torch.Generator) -> Iterator[Any]:
        """Yield one epoch's batches, drawn from ``generator``."""

    def num_batches(self) -> int:
        """Return about how many they are."""


@dataclass
class Fitted:
    """How training went.

    Args:
        history: One record per epoch: ``epoch``, ``train_loss``, what was evaluated, ``seconds``.
        best_epoch: The epoch whose weights were kept, from 1.
        seconds: Time spent, evaluation for early stopping included.
        training_seconds: Time spent in training steps alone.
        num_instances: Instances trained on, over all epochs.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    num_instances: int = 0


@dataclass
class Loop:
    """Trains a module; afterwards it holds the weights of its best epoch.

    Args:
        module: What to train.
        fabric: Device and precision.
        stage: ``"pretrain"`` or ``"finetune"``; names the progress bar and seeds the shuffling.
        learning_rate: Of Adam.
        weight_decay: Of Adam (L2).
        accumulate: Parts that a step's batch is computed in, one after the other.
        optimizer: ``"adam"`` or ``"lazy-adam"``, for which tables have sparse gradients.
        epochs: At most so many.
        patience: Stop after so many epochs without a better value, those of the module's schedule not counted; 0 never
            stops early.
        monitor: Key of what `evaluate` returns; larger is better unless ``lower_is_better``.
        lower_is_better: For losses.
        compile: Let `torch.compile` fuse what the blocks compute.
        seed: Seeds shuffling and negatives.
        checkpoint: File to keep for going on after a crash, or None. It is written after each epoch, and when SIGINT or
            SIGTERM ends the training.
        save_minutes: Write it also within an epoch, when so many minutes have passed since; 0 does not.
        bound_to: What the checkpoint belongs to, e.g. the dataset's fingerprint; it goes on with nothing else.
        begin: Called before the first epoch, with the records of those that are done.
        observe: Called with each epoch's record.
        progress: Who is told.
    """

    module: Trainable
    fabric: Fabric
    stage: str
    learning_rate: float
    epochs: int
    patience: int
    monitor: str
    weight_decay: float = 0.0
    accumulate: int = 1
    optimizer: Optimizer = "adam"
    lower_is_better: bool = False
    compile: bool = False
    seed: int = 0
    checkpoint: Path | None = None
    save_minutes: float = 0.0
    bound_to: Mapping[str, Any] = field(default_factory=dict)
    begin: Callable[[Sequence[Mapping[str, float]]], None] = lambda history: None
    observe: Callable[[Mapping[str, float]], None] = lambda record: None
    progress: Progress = field(default_factory=Progress)
    _adam: torch.optim.Adam = field(init=False, repr=False)
    _fitted: Fitted = field(init=False, repr=False)
    _best: dict[str, Tensor] = field(init=False, repr=False)
    _begun: Begun | None = field(init=False, repr=False)
    _saved: float = field(init=False, repr=False)
    _watch: Guard | None = field(default=None, init=False, repr=False)

    def fit(self, batches: Batches, evaluate: Callable[[], dict[str, float]], *, resume: bool = False) -> Fitted:
        """Train to the end, or from where a crash left it.

        A step that has begun is done to its end when SIGINT or SIGTERM comes; what is done so far is then saved.

        Args:
            batches: The training batches.
            evaluate: Returns values of the validation part; called after each epoch.
            resume: Go on from ``checkpoint`` if there is one.

        Raises:
            FinetuneKitError: When the loss or a gradient stops being a number, or memory runs out.
            CheckpointError: When ``checkpoint`` is damaged, or belongs to something else.
            StorageError: When ``checkpoint`` can't be written; the one before stays.
            OptionError: When ``compile`` does not work on this machine.
        """
        if self.compile:
            compile_blocks(self.module, self.fabric.device)
        trained = [parameter for parameter in self.module.parameters() if self.module.trains(parameter)]
        options = self.learning_rate, self.weight_decay, self.fabric.device
        self._adam = make_optimizer(self.optimizer, trained, *options)
        is_lazy = self.optimizer == "lazy-adam"
        step = Step(self.module, self._adam, self.fabric, accumulate=self.accumulate, by_row=is_lazy)
        if self.epochs <= self.module.schedule_epochs:
            self.progress.say(
                f"warning: {self.stage}.epochs = {self.epochs}, but everything trains only after "
                f"{self.module.schedule_epochs} epochs; set epochs above {self.module.schedule_epochs}"
            )
        self._fitted, self._best, self._begun, self._saved = Fitted(), {}, None, time.monotonic()
        if resume and self.checkpoint and self.checkpoint.exists():
            self._load()
        self.begin(self._fitted.history)
        with (
            gradients_by_row(self.module, is_lazy),
            self.progress.stage(self.stage, self.epochs * batches.num_batches()) as advance,
            Shield(is_shared=here().size > 1) as shield,
        ):
            try:
                for epoch in range(len(self._fitted.history) + 1, self.epochs + 1):
                    if self._is_exhausted(epoch, self._fitted):
                        break
                    with enough_memory(self.stage, TRAIN_ON_LESS[self.stage]):
                        self._train_epoch(step, batches, epoch, shield, advance)
                    self._finish_epoch(epoch, evaluate, shield)
                    with shield.whole():
                        self.observe(self._fitted.history[-1])
                    self._save()
                    self._heed(shield)
            except KeyboardInterrupt:
                if not shield.is_torn:
                    self._save()
                raise
        self.module.load_trained_state(self._best)
        self.module.eval()
        return self._fitted

    def _train_epoch(
        self,
        one_step: Step,
        batches: Batches,
        epoch: int,
        shield: Shield,
        advance: Callable[[int, str], None],
    ) -> None:
        """Train one epoch, or what is left of it."""
        with shield.whole():
            generator = self._start_epoch(epoch)
        begun, fitted = self._begun, self._fitted
        assert begun is not None
        done, started = begun.steps, time.perf_counter() - begun.seconds
        guard = self._watch = self._guard(epoch, done)
        best = f"best {fitted.history[fitted.best_epoch - 1][self.monitor]:.4f}" if fitted.best_epoch else ""
        for step, batch in enumerate(batches.epoch(generator), start=1):
            if step > done:  # else it was trained on before an interruption, and is drawn again for what follows
                with shield.whole():
                    loss = one_step.gradients(batch)
                    guard.see(loss, self.module.parameters(), batch)
                    one_step.optimizer.step()
                    for parameter in self.module.parameters():
                        parameter.grad = None  # in a step of a small head, `zero_grad` takes longer than it should
                    begun.loss += loss
                    begun.steps, begun.seconds = step, time.perf_counter() - started
                    fitted.num_instances += len(batch)
                if here().size == 1 or self.fabric.device.type == "cpu" or step % LOOK_EVERY == 0:
                    self._heed(shield)
            advance(1, f"epoch {epoch} {best}")
        guard.look()
        begun.seconds = time.perf_counter() - started

    def _heed(self, shield: Shield) -> None:
        """Between two steps, the same two in all processes: save if it is time, and stop if any was told to."""
        is_due = self.save_minutes > 0 and time.monotonic() - self._saved >= 60 * self.save_minutes
        is_due, number = here().largest(int(is_due), shield.waiting)
        if is_due:
            self._save()
        if number:
            shield.act(number)

    def _guard(self, epoch: int, num_steps: int) -> Guard:
        has_scaler = getattr(self._precision, "scaler", None) is not None
        return Guard(self.stage, epoch, self.learning_rate, self.checkpoint, has_scaler, num_steps)

    def _start_epoch(self, epoch: int) -> torch.Generator:
        """Bring module and generators to an epoch's beginning, or to where it was left; return what draws batches."""
        # The global generators serve dropout alone; everything that must be equal across devices has its own.
        own = [here().rank] if here().rank else []  # other users, other dropout
        torch.manual_seed(derive_seed(self.seed, self.stage, "dropout", epoch, *own))
        state = None if self._begun is None else self.module.trained_state()
        state = state and {name: tensor.clone() for name, tensor in state.items()}
        self.module.start_epoch(epoch)
        self.module.train()
        if self._begun is None:
            self._begun = Begun(torch.zeros((), device=self.fabric.device))
        else:
            self.module.load_trained_state(state or {})  # a schedule may change weights at an epoch's beginning
            set_random_states(self.module, self.fabric.device, self._begun.random)
            if own:  # they are the first's
                torch.manual_seed(derive_seed(self.seed, self.stage, "dropout", epoch, *own, self._begun.steps))
            self._begun.random = {}
        return torch.Generator().manual_seed(derive_seed(self.seed, self.stage, "batches", epoch))

    def _finish_epoch(self, epoch: int, evaluate: Callable[[], dict[str, float]], shield: Shield) -> None:
        """Evaluate, and enter the epoch into the history; keep its weights if they are the best."""
        begun, fitted = self._begun, self._fitted
        assert begun is not None
        train_loss = begun.loss.item() / begun.steps
        started = time.perf_counter()
        values = evaluate()
        seconds = begun.seconds + time.perf_counter() - started
        with shield.whole():
            fitted.training_seconds += begun.seconds
            fitted.seconds += seconds
            fitted.history.append({"epoch": epoch, "train_loss": train_loss, **values, "seconds": seconds})
            if fitted.best_epoch == 0 or self._is_better(values, fitted.history[fitted.best_epoch - 1]):
                fitted.best_epoch = epoch
                self._best = {name: tensor.cpu().clone() for name, tensor in self.module.trained_state().items()}
            self._begun = None

    def _is_exhausted(self, epoch: int, fitted: Fitted) -> bool:
        """Return whether patience is at its end before an epoch; it counts from the schedule's end on."""
        waited = epoch - max(fitted.best_epoch, self.module.schedule_epochs)
        return bool(self.patience and fitted.history) and waited > self.patience

    def _is_better(self, values: Mapping[str, float], best: Mapping[str, float]) -> bool:
        new, old = values[self.monitor], best[self.monitor]
        return new < old if self.lower_is_better else new > old

    def _save(self) -> None:
        """Write everything needed to go on: weights, the best ones, Adam's moments, generators, the history."""
        begun = self._begun
        if begun is not None and self._watch is not None:
            self._watch.look()  # nothing takes the place of the last good state before it was looked at
        if self.checkpoint is None or (begun and not math.isfinite(begun.loss.item())):
            return  # the state that is there is the last good one
        here().alone(partial(self._write, self.checkpoint, begun))
        self._saved = time.monotonic()

    def _write(self, checkpoint: Path, begun: Begun | None) -> None:
        parts = {"now": self.module.trained_state(), "best": self._best, "adam": {}, "random": {}, "epoch": {}}
        for index, moments in self._adam.state_dict()["state"].items():
            parts["adam"] |= {f"{index}/{name}": torch.as_tensor(moment) for name, moment in moments.items()}
        facts = {
            "fitted": vars(self._fitted),
            "bound_to": dict(self.bound_to),
            "scaler": self._precision.state_dict(),
            "versions": versions(),
        }
        if begun is not None:
            parts["random"] = begun.random or random_states(self.module, self.fabric.device)
            parts["epoch"] = {"loss": begun.loss}
            facts["begun"] = {"steps": begun.steps, "seconds": begun.seconds}
        write_state(checkpoint, parts, facts)

    def _load(self) -> None:
        """Load what `_save` wrote."""
        assert self.checkpoint is not None
        parts, facts = read_state(self.checkpoint, ("now", "best", "adam", "random", "epoch"))
        refuse_other_state(self.checkpoint, facts["bound_to"], self.bound_to)
        if told := differences(facts["versions"], versions()):
            self.progress.say(f"warning: {self.stage} goes on under other versions, so it may round otherwise: {told}")
        self._precision.load_state_dict(facts["scaler"])  # the loss scale of 16-mixed; nothing in other precisions
        self.module.load_trained_state(parts["now"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["adam"].items():
            index, _, name = key.partition("/")
            moments.setdefault(int(index), {})[name] = tensor
        self._adam.load_state_dict({"state": moments, "param_groups": self._adam.state_dict()["param_groups"]})
        self._fitted, self._best = Fitted(**facts["fitted"]), parts["best"]
        where = f"after epoch {len(self._fitted.history)}"
        if begun := facts.get("begun"):
            self._begun = Begun(parts["epoch"]["loss"].to(self.fabric.device), **begun, random=parts["random"])
            where = f"in epoch {len(self._fitted.history) + 1}, after step {self._begun.steps}"
        self.progress.say(f"{self.stage}: going on {where}")

    @property
    def _precision(self) -> Any:
        return self.fabric.strategy.precision

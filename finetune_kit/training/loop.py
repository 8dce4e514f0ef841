"""The loop that pre-training and fine-tuning share: train, evaluate, keep the best, stop early, go on after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import Precision
from lightning_fabric.strategies import SingleDeviceStrategy
from safetensors import safe_open
from torch import Tensor

from finetune_kit.errors import CheckpointError
from finetune_kit.files import write_tensors
from finetune_kit.memory import enough_memory
from finetune_kit.progress import Progress
from finetune_kit.sections import Optimizer
from finetune_kit.seeding import derive_seed
from finetune_kit.tables import gradients_by_row
from finetune_kit.trainable import Trainable
from finetune_kit.training.compilation import compile_blocks
from finetune_kit.training.guard import Guard
from finetune_kit.training.optimizer import make_optimizer

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
        optimizer: ``"adam"`` or ``"lazy-adam"``, for which tables have sparse gradients.
        epochs: At most so many.
        patience: Stop after so many epochs without a better value, those of the module's schedule not counted; 0 never
            stops early.
        monitor: Key of what `evaluate` returns; larger is better unless ``lower_is_better``.
        lower_is_better: For losses.
        compile: Let `torch.compile` fuse what the blocks compute.
        seed: Seeds shuffling and negatives.
        checkpoint: File to keep for going on after a crash, or None.
        bound_to: What the checkpoint belongs to, e.g. the dataset's fingerprint; it goes on with nothing else.
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
    optimizer: Optimizer = "adam"
    lower_is_better: bool = False
    compile: bool = False
    seed: int = 0
    checkpoint: Path | None = None
    bound_to: Mapping[str, str] = field(default_factory=dict)
    observe: Callable[[Mapping[str, float]], None] = lambda record: None
    progress: Progress = field(default_factory=Progress)

    def fit(self, batches: Batches, evaluate: Callable[[], dict[str, float]], *, resume: bool = False) -> Fitted:
        """Train to the end, or from where a crash left it.

        Args:
            batches: The training batches.
            evaluate: Returns values of the validation part; called after each epoch.
            resume: Go on from ``checkpoint`` if there is one.

        Raises:
            FinetuneKitError: When the loss or a gradient stops being a number, or memory runs out.
            OptionError: When ``compile`` does not work on this machine.
        """
        if self.compile:
            compile_blocks(self.module, self.fabric.device)
        trained = [parameter for parameter in self.module.parameters() if self.module.trains(parameter)]
        adam = make_optimizer(self.optimizer, trained, self.learning_rate, self.weight_decay, self.fabric.device)
        module, optimizer = self.fabric.setup(self.module, adam)
        if isinstance(self.fabric.strategy, SingleDeviceStrategy) and type(self._precision) is Precision:
            module = self.module  # in one process and in float32 the wrapper does nothing, and takes its time for it
        if self.epochs <= self.module.schedule_epochs:
            self.progress.say(
                f"warning: {self.stage}.epochs = {self.epochs}, but everything trains only after "
                f"{self.module.schedule_epochs} epochs; set epochs above {self.module.schedule_epochs}"
            )
        fitted, best = Fitted(), {}
        if resume and self.checkpoint and self.checkpoint.exists():
            fitted, best = self._load(adam)
            self.progress.say(f"{self.stage}: going on after epoch {len(fitted.history)}")
        with (
            gradients_by_row(self.module, self.optimizer == "lazy-adam"),
            self.progress.stage(self.stage, self.epochs * batches.num_batches()) as advance,
        ):
            for epoch in range(len(fitted.history) + 1, self.epochs + 1):
                if self._is_exhausted(epoch, fitted):
                    break
                started = time.perf_counter()
                with enough_memory(self.stage, TRAIN_ON_LESS[self.stage]):
                    train_loss = self._train_epoch(module, optimizer, batches, epoch, fitted, advance)
                fitted.training_seconds += time.perf_counter() - started
                values = evaluate()
                seconds = time.perf_counter() - started
                fitted.seconds += seconds
                record = {"epoch": epoch, "train_loss": train_loss, **values, "seconds": seconds}
                fitted.history.append(record)
                if fitted.best_epoch == 0 or self._is_better(values, fitted.history[fitted.best_epoch - 1]):
                    fitted.best_epoch = epoch
                    best = {name: tensor.cpu().clone() for name, tensor in self.module.trained_state().items()}
                self.observe(record)
                if self.checkpoint:
                    self._save(adam, fitted, best)
        self.module.load_trained_state(best)
        self.module.eval()
        return fitted

    def _train_epoch(
        self,
        module: Any,
        optimizer: Any,
        batches: Batches,
        epoch: int,
        fitted: Fitted,
        advance: Callable[[int, str], None],
    ) -> float:
        """Train one epoch and return its mean loss per batch."""
        # The global generators serve dropout alone; everything that must be equal across devices has its own.
        torch.manual_seed(derive_seed(self.seed, self.stage, "dropout", epoch))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.stage, "batches", epoch))
        self.module.start_epoch(epoch)
        self.module.train()
        total, steps = torch.zeros((), device=self.fabric.device), 0
        guard = self._guard(epoch)
        best = f"best {fitted.history[fitted.best_epoch - 1][self.monitor]:.4f}" if fitted.best_epoch else ""
        for batch in batches.epoch(generator):
            loss = module(batch.to(self.fabric.device))
            self.fabric.backward(loss)
            guard.see(loss, self.module.parameters(), batch)
            optimizer.step()
            for parameter in self.module.parameters():
                parameter.grad = None  # in a step of a small head, `zero_grad` takes longer than it should
            total += loss.detach()
            steps += 1
            fitted.num_instances += len(batch)
            advance(1, f"epoch {epoch} {best}")
        guard.look()
        return total.item() / steps

    def _guard(self, epoch: int) -> Guard:
        has_scaler = getattr(self._precision, "scaler", None) is not None
        return Guard(self.stage, epoch, self.learning_rate, self.checkpoint, has_scaler)

    def _is_exhausted(self, epoch: int, fitted: Fitted) -> bool:
        """Return whether patience is at its end before an epoch; it counts from the schedule's end on."""
        waited = epoch - max(fitted.best_epoch, self.module.schedule_epochs)
        return bool(self.patience and fitted.history) and waited > self.patience

    def _is_better(self, values: Mapping[str, float], best: Mapping[str, float]) -> bool:
        new, old = values[self.monitor], best[self.monitor]
        return new < old if self.lower_is_better else new > old

    def _save(self, optimizer: torch.optim.Optimizer, fitted: Fitted, best: Mapping[str, Tensor]) -> None:
        """Write everything needed to go on: weights, the best epoch's weights, Adam's moments, the history."""
        assert self.checkpoint is not None
        tensors = {f"now/{name}": tensor for name, tensor in self.module.trained_state().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": torch.as_tensor(moment) for name, moment in moments.items()}
        about = {"fitted": vars(fitted), "bound_to": dict(self.bound_to), "scaler": self._precision.state_dict()}
        write_tensors(self.checkpoint, tensors, {name: json.dumps(value) for name, value in about.items()})

    def _load(self, optimizer: torch.optim.Optimizer) -> tuple[Fitted, dict[str, Tensor]]:
        """Load what `_save` wrote into module and optimizer; return the history and the best weights."""
        assert self.checkpoint is not None
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        try:
            with safe_open(str(self.checkpoint), framework="pt") as file:
                about = {name: json.loads(text) for name, text in file.metadata().items()}
                for key in file.keys():  # noqa: SIM118  (not a mapping)
                    part, _, name = key.partition("/")
                    parts[part][name] = file.get_tensor(key)
        except Exception as error:
            raise CheckpointError(f"{self.checkpoint} can't be read: {error}; delete it to start over") from error
        if about["bound_to"] != dict(self.bound_to):
            was, now = about["bound_to"], self.bound_to
            other = [name for name in {**was, **now} if was.get(name) != now.get(name)]
            values = [f"{name} {was.get(name, 'none')[:12]}, now {now.get(name, 'none')[:12]}" for name in other]
            raise CheckpointError(f"{self.checkpoint} belongs to another {'; '.join(values)}; delete it to start over")
        self._precision.load_state_dict(about["scaler"])  # the loss scale of 16-mixed; nothing in other precisions
        self.module.load_trained_state(parts["now"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["adam"].items():
            index, _, name = key.partition("/")
            moments.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return Fitted(**about["fitted"]), parts["best"]

    @property
    def _precision(self) -> Any:
        return self.fabric.strategy.precision

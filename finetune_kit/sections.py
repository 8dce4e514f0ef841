"""The sections of a configuration that do not depend on a plugin: one options model each.

Nothing here imports torch, so that ``ftkit options`` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from finetune_kit.errors import OptionError
from finetune_kit.options import Options

if TYPE_CHECKING:
    from typing_extensions import Self

Protocol = Literal["instance", "user", "authors"]
RankingProtocol = Literal["full", "sampled"]
Batching = Literal["users", "instances"]
Pooling = Literal["last", "mean"]
Cache = Literal["auto", "off"]
Preset = Literal["none", "paper", "authors"]
Deterministic = Literal["auto", "true", "false"]
Loss = Literal["bpr", "bce", "sampled-softmax", "softmax"]
Optimizer = Literal["adam", "lazy-adam"]


class RunOptions(Options):
    """The section ``run``: what is combined."""

    strategy: str = "finetune-all"
    """Strategy, by name."""
    backbone: str = "nextitnet"
    """Backbone, by name."""
    data: str = "synthetic"
    """Dataset folder, or the name of a dataset that prepares itself."""
    task: str = "items"
    """What is learned on the target domain: items, or label:NAME, a profile label of the dataset."""
    preset: Preset = "none"
    """Defaults of all sections: none (sizes for two cores), paper (those of the paper), authors (their code's)."""
    seed: int = Field(0, ge=0)
    """Seeds everything."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    devices: int = Field(1, ge=1)
    """Processes on this machine that train together, each on a GPU of its own, or on the CPU: the same batches and,
    but for rounding and dropout, the same weights as one process; see docs/parallel.md."""
    precision: str = "32"
    """32, bf16-mixed or 16-mixed."""
    compile: bool = False
    """Let torch.compile fuse what the blocks compute; the first steps then take longer, and it needs a C++ compiler."""
    deterministic: Deterministic = "auto"
    """Compute by deterministic algorithms alone, for the same numbers from the same seed, bit for bit: auto on a CPU,
    true everywhere (slower on a GPU, and refused where an operation has no such form), false nowhere."""
    trackers: tuple[str, ...] = ("jsonl",)
    """Trackers that are told the numbers as they come, by name."""
    save_minutes: float = Field(5.0, ge=0)
    """Within an epoch, save every so many minutes what --resume goes on from; 0 saves after each epoch alone."""

    @field_validator("deterministic", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        """Let TOML's true and the flag --deterministic stand for the words."""
        return str(value).lower() if isinstance(value, bool) else value


class DataOptions(Options):
    """How a dataset is used; a dataset given by name takes its own options in the same section."""

    max_length: int = Field(50, ge=2)
    """Source events per user that a model sees, the latest; also the length of pre-training windows."""
    split: Protocol = "instance"
    """Instances are split 80/5/15 (the paper), or users with all their instances (every test user fully cold);
    authors is 80/20 by instance with the best epoch chosen on the test part, as their code does."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training instances that is used; validation and test stay whole."""
    unseen: Literal["keep", "drop", "refuse"] = "keep"
    """What to do with validation and test instances whose item no training instance has."""


class PretrainOptions(Options):
    """Options of pre-training."""

    epochs: int = Field(30, ge=1)
    """At most so many passes over the source windows."""
    batch_size: int = Field(128, ge=1)
    """Windows per step."""
    accumulate: int = Field(1, ge=1)
    """Compute a step's batch in so many parts, one after the other: less memory, the same weights up to rounding."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam; the paper has 1e-4."""
    optimizer: Optimizer = "adam"
    """adam, or lazy-adam (large catalogues): rows of item tables that a step does not look up keep weights and moments,
    where Adam's moments decay and go on moving them. The output layer is looked up by loss=sampled-softmax alone."""
    patience: int = Field(2, ge=0)
    """Stop after so many epochs without a better loss on held-out users; 0 trains all epochs."""
    valid_share: float = Field(0.05, gt=0, lt=1)
    """Share of users whose sequences are held out to know when to stop."""
    windows: Literal["all", "latest"] = "all"
    """The whole history in windows of data.max_length, or only each user's latest (the paper)."""
    loss: Literal["softmax", "sampled-softmax"] = "softmax"
    """Exact over all items, or over items drawn by their frequency, with log-Q correction (large catalogues)."""
    num_negatives: int = Field(2048, ge=1)
    """Items drawn per step by loss=sampled-softmax."""


class FinetuneOptions(Options):
    """Options of fine-tuning."""

    epochs: int = Field(100, ge=1)
    """At most so many passes over the training instances."""
    batch_size: int = Field(256, ge=1)
    """Instances per step."""
    accumulate: int = Field(1, ge=1)
    """Compute a step's batch in so many parts, one after the other: less memory, the same weights up to rounding.
    Exact where a loss is a mean over instances; terms over the batch's users (information_weight, spottune's k) become
    those of each part's, rl draws other candidates, and mtl's source windows count with the part that they fall to."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam; the paper has 1e-4."""
    weight_decay: float = Field(0.0, ge=0)
    """Of Adam (L2)."""
    optimizer: Optimizer = "adam"
    """adam, or lazy-adam (large catalogues): rows of item tables that a step does not look up keep weights and moments,
    where Adam's moments decay and go on moving them. The head is looked up by all losses on items but softmax."""
    patience: int = Field(10, ge=0)
    """Stop after so many epochs without a better MRR@5 (labels: macro F1) on validation; 0 trains all epochs."""
    loss: Loss = "bpr"
    """For items: bpr (the paper), bce (the authors' code), sampled-softmax over the drawn negatives, or softmax over
    all items. Labels are always learned by cross-entropy."""
    num_negatives: int = Field(1, ge=1)
    """Negatives drawn per instance; loss=softmax takes all items instead."""
    source_batch_size: int = Field(64, ge=1)
    """Source windows per step beside the instances, for strategies that learn the source domain too."""
    batching: Batching = "users"
    """Batches of instances at random (the paper), or of users with all theirs: a user is then encoded once an epoch."""
    pooling: Pooling = "last"
    """The user vector: the last position (the paper) or the mean over positions (the authors' code)."""
    cache: Cache = "auto"
    """auto computes what leading blocks make of a user once, for as long as they are frozen or rest; off computes it in
    each step. The numbers are the same."""
    cache_memory: int = Field(1024, ge=0)
    """MiB up to which cache=auto stays in memory; beyond, it is a file in the run folder until the run has ended."""

    @model_validator(mode="after")
    def _decays_all_or_none(self) -> Self:
        """Refuse weight decay, which moves every row in every step, beside an optimizer that does not."""
        if self.optimizer == "lazy-adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay = {self.weight_decay:g} moves every row of a table in every step, which optimizer = "
                "lazy-adam is there to avoid; give optimizer=adam or weight_decay=0"
            )
        return self


class EvaluationOptions(Options):
    """How models are measured."""

    protocols: tuple[RankingProtocol, ...] = Field(("full", "sampled"), min_length=1)
    """Ranking protocols: full ranks all target items but the user's training items, sampled draws some negatives."""
    cutoffs: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10, 20), min_length=1)
    """Cut-offs N of HR@N, MRR@N and NDCG@N. Whatever they are, MRR@5 on validation chooses the best epoch."""
    num_candidates: int = Field(99, ge=1)
    """Negatives per instance of the sampled protocol; the authors have 99."""
    batch_size: int = Field(512, ge=1)
    """Users scored at once."""
    references: tuple[Literal["popularity", "user-knn"], ...] = ("popularity",)
    """Simple rankings measured beside the model; user-knn compares all pairs of users, so it takes a while on many.
    Beside labels stands the commonest class."""


LABEL_PREFIX = "label:"
"""What stands before a label's name in ``run.task``."""


def label_of(task: str) -> str | None:
    """Return the label that a task asks for, or None for the task of ranking items.

    Raises:
        OptionError: For a task that is neither ``items`` nor ``label:NAME``.
    """
    if task == "items":
        return None
    if not task.startswith(LABEL_PREFIX) or task == LABEL_PREFIX:
        raise OptionError(f"--task {task!r} is neither items nor label:NAME, e.g. label:gender")
    return task.removeprefix(LABEL_PREFIX)

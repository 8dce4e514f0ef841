"""Stage 2: options of fine-tuning on the target domain (UAF paper, Eq. 7, 8; section 4.3)."""

from __future__ import annotations

from pydantic import Field

from finetune_kit.backbone import Pooling
from finetune_kit.data.loading import Batching
from finetune_kit.options import Options
from finetune_kit.task import Loss


class FinetuneOptions(Options):
    """Options of fine-tuning."""

    epochs: int = Field(100, ge=1)
    """At most so many passes over the training instances."""
    batch_size: int = Field(256, ge=1)
    """Instances per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam; the paper has 1e-4."""
    weight_decay: float = Field(0.0, ge=0)
    """Of Adam (L2)."""
    patience: int = Field(10, ge=0)
    """Stop after so many epochs without a better validation MRR; 0 trains all epochs."""
    loss: Loss = "bpr"
    """bpr (the paper), bce (the authors' code), sampled-softmax over the drawn negatives, or softmax over all items."""
    num_negatives: int = Field(1, ge=1)
    """Negatives drawn per instance; loss=softmax takes all items instead."""
    batching: Batching = "users"
    """Batches of instances at random (the paper), or of users with all theirs: a user is then encoded once an epoch."""
    pooling: Pooling = "last"
    """The user vector: the last position (the paper) or the mean over positions (the authors' code)."""

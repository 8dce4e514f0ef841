"""Global fine-tuning: the same layers are re-learned for all users.

The baselines Finetune-Zero, -CLS, -Last-N and -All of Chen et al., *User-specific Adaptive Fine-tuning for
Cross-domain Recommendations*, TKDE 2021, section 4.2. All share backbone, head and loss (Eq. 7, 8); they differ
in what they start from and in what trains:

| strategy | pre-trained | trained |
| --- | --- | --- |
| ``finetune-zero`` | no | everything |
| ``finetune-cls`` | yes | head |
| ``finetune-last`` | yes | head and the last n residual blocks |
| ``finetune-all`` | yes | everything |

Differences from the paper: where it says "softmax layer" it means the head of Eq. 7. Sizes, learning rate and the
making of batches are options whose defaults are smaller than the paper's: ``docs/method.md`` has them all.
"""

from __future__ import annotations

from pydantic import Field

from finetune_kit.errors import OptionError
from finetune_kit.options import Options
from finetune_kit.strategy import Strategy


class FinetuneZero(Strategy):
    """Train everything from random weights, on the target domain alone."""

    needs_pretrained = False

    def build(self) -> None:
        """Leave everything trainable."""


class FinetuneCls(Strategy):
    """Train the head only."""

    def build(self) -> None:
        """Freeze the whole backbone."""
        self.freeze(self.backbone)


class FinetuneLastOptions(Options):
    """Options of Finetune-Last-N."""

    n: int = Field(1, ge=1)
    """How many of the last residual blocks are trained."""


class FinetuneLast(Strategy):
    """Train the head and the last ``n`` residual blocks."""

    Options = FinetuneLastOptions
    options: FinetuneLastOptions

    def build(self) -> None:
        """Freeze the backbone but for its last blocks.

        Raises:
            OptionError: When the backbone has fewer than ``n`` blocks.
        """
        blocks = self.backbone.blocks
        if self.options.n > len(blocks):
            raise OptionError(
                f"strategy.n = {self.options.n}, but the backbone has {len(blocks)} blocks; use at most that many"
            )
        self.freeze(self.backbone, but=blocks[len(blocks) - self.options.n :])


class FinetuneAll(Strategy):
    """Train everything, starting from the pre-trained weights."""

    def build(self) -> None:
        """Leave everything trainable."""

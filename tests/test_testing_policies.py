"""The contract of policies can fail: a planted mistake breaks the promise that it should."""

import pytest
from torch import Tensor, nn

from finetune_kit.backbone import Backbone
from finetune_kit.policy import Policy
from finetune_kit.testing import (
    PolicyContract,
    TinyBackbone,
)


class SharesItsEmbedding(Policy):
    def __init__(self, backbone: Backbone, num_outputs: int) -> None:
        super().__init__(backbone, num_outputs)
        self.item_embedding = backbone.item_embedding
        self.output = nn.Linear(backbone.dim, self.num_blocks * num_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        mean = self.item_embedding(sequence).mean(dim=1)  # over padding too
        return self.output(mean - mean.mean(dim=0)).unflatten(-1, (self.num_blocks, self.num_outputs))


@pytest.mark.parametrize(
    "promise",
    [
        "it_shares_nothing_with_the_backbone",
        "more_padding_changes_no_decision",
        "users_do_not_influence_one_another",
    ],
)
def test_a_planted_policy_breaks_its_promise(promise: str) -> None:
    class Contract(PolicyContract):
        def make(self, backbone: Backbone, num_outputs: int = 2) -> Policy:
            return SharesItsEmbedding(backbone, num_outputs).eval()

    with pytest.raises(AssertionError):
        getattr(Contract(), f"test_{promise}")(TinyBackbone)

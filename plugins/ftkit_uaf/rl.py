"""UAF-RL: for each user and block, the frozen or the fine-tuned branch, learned by self-critical REINFORCE.

Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021, section 3.3.3.
With N blocks, A ~ p the actions drawn for a user (1 is fine-tuned), and Â the likelier ones:

    R(A)  = 1 − (Σ_l A_l / N)² if the positive is a hit, else −γ            (Eq. 13)
    L_RL  = −Σ_l log p(A_l) (R(A) − R(Â))                                   (Eq. 14)
    L     = L_task + β L_RL                                                 (Eq. 15)

and I_l = A_l enters Eq. 6 (`branches.py`). A hit: the positive is among the first 5 of itself and 99 drawn negatives.

| symbol | attribute or variable | shape |
| --- | --- | --- |
| p(A_l = 1) | ``probabilities`` | (users, blocks) |
| A, Â | ``gates``, ``greedy`` | (users, blocks) |
| R(A) − R(Â) | ``advantage`` | (instances,) |
| γ, β | ``gamma``, ``beta`` | scalar |

Curriculum: for the first ``curriculum_epochs`` actions are greedy, Eq. 14 is off and the policy rests as it was drawn.
It then gives nearly all users the same actions, so by the seed's chance some fine-tuned branches learn nothing until
Eq. 14 sets in. Gates are constants to the loss of the task: the policy learns from the reward alone.

Differences from the paper, where it is silent: rewards are an instance's and Eq. 14 is averaged over instances; A and
Â are judged on the same drawn negatives (with dropout, under another mask each); a tie of the two actions means frozen.
Differences from the authors' code: its reward grows with the fine-tuned share instead, 1 − γ(1 − Σ_l A_l / N)²
(``reward=authors``); what it gives for a miss we do not know, so that stays −γ.
``usage_weight`` and its like are ours (`collapse.py`); they act on the probabilities, in the curriculum too.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.policy import make_policy
from finetune_kit.seeding import uniform_per_user
from finetune_kit.strategy import Encoded, Strategy
from ftkit_uaf.branches import add_tuned_branches
from ftkit_uaf.collapse import LearnedPolicyOptions, collapse_loss


class UafRlOptions(LearnedPolicyOptions):
    """Options of UAF-RL."""

    gamma: float = Field(1.0, ge=0)
    """γ of Eq. 13: what a miss costs."""
    beta: float = Field(1.0, ge=0)
    """β of Eq. 15: weight of the self-critical loss."""
    curriculum_epochs: int = Field(5, ge=0)
    """Epochs at the start in which actions are greedy and the policy rests."""
    num_candidates: int = Field(99, ge=1)
    """Negatives that the positive is ranked among to see whether it is a hit."""
    reward: Literal["paper", "authors"] = "paper"
    """A hit earns more with fewer fine-tuned blocks (the paper) or with more of them (the authors' code)."""
    evaluation: Literal["greedy", "sample", "expected"] = "greedy"
    """At evaluation: the likelier action, an action drawn once per user, or the probability itself as a soft gate."""


class UafRl(Strategy):
    """UAF with rewarded decisions; trains the policy, the fine-tuned branches, the item embedding and the head."""

    Options = UafRlOptions
    evaluation_options = frozenset({"evaluation"})
    options: UafRlOptions

    def build(self) -> None:
        """Give each block a trainable copy and add the policy; at first both branches compute the same."""
        self.policy = make_policy(self.options.policy, self.backbone, 2, self.options.policy_options)
        self.is_exploring = self.options.curriculum_epochs == 0
        add_tuned_branches(self)

    def start_epoch(self, epoch: int) -> None:
        """Explore once the curriculum is through."""
        super().start_epoch(epoch)
        self.is_exploring = epoch > self.options.curriculum_epochs

    def remarks(self, best_epoch: int) -> list[str]:
        """Return a warning where the best epoch lies in the curriculum."""
        length = self.options.curriculum_epochs
        if best_epoch > length:
            return []
        return [
            f"the best epoch, {best_epoch}, lies in the curriculum of {length} epochs: the policy has not learned yet"
        ]

    def encode(self, batch: Batch) -> Encoded:
        """Return user vectors ``(users, dim)`` with each user's actions applied (Eq. 6)."""
        probabilities = self.policy(batch.sequence).softmax(dim=-1)[..., 0]  # (users, blocks)
        choose = self._train_gates if self.training else self._evaluation_gates
        gates = choose(batch, probabilities)
        vectors = self.backbone.user_vectors(batch.sequence, gates, pooling=self.pooling)
        return Encoded(vectors, gates, probabilities)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the task's loss and, once exploring, β L_RL (Eq. 15), plus the terms against collapse."""
        assert encoded.gates is not None
        assert encoded.probabilities is not None
        loss = super().loss(batch, encoded) + collapse_loss(self.options, encoded.probabilities, encoded.probabilities)
        if not (self.training and self.is_exploring):
            return loss
        advantage = self.advantage(batch, encoded)
        return loss + self.options.beta * self_critical(encoded.probabilities, encoded.gates, advantage, batch.row)

    @torch.no_grad()
    def advantage(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return R(A) − R(Â), ``(instances,)``: by how much the drawn actions do better than the greedy ones."""
        assert encoded.gates is not None
        assert encoded.probabilities is not None
        candidates = self.task.draw_candidates(batch, self.options.num_candidates, self.noise)
        greedy = _greedy(encoded.probabilities)
        vectors = self.backbone.user_vectors(batch.sequence, greedy, pooling=self.pooling)
        drawn = self._rewards(batch, encoded.gates, encoded.vectors, candidates)
        return drawn - self._rewards(batch, greedy, vectors, candidates)

    def _rewards(self, batch: Batch, actions: Tensor, vectors: Tensor, candidates: Tensor) -> Tensor:
        is_hit = self.task.ranks(vectors, batch, candidates) <= self.task.hit_rank
        return reward(actions[batch.row], is_hit, self.options.gamma, self.options.reward)

    def _train_gates(self, batch: Batch, probabilities: Tensor) -> Tensor:
        if not self.is_exploring:
            return _greedy(probabilities)
        return (self.draw(batch, probabilities.shape[1]) < probabilities).to(probabilities.dtype)

    def _evaluation_gates(self, batch: Batch, probabilities: Tensor) -> Tensor:
        if self.options.evaluation == "expected":
            return probabilities
        if self.options.evaluation == "sample":
            draws = uniform_per_user(batch.user, probabilities.shape[1], self.seed)
            return (draws < probabilities).to(probabilities.dtype)
        return _greedy(probabilities)


def _greedy(probabilities: Tensor) -> Tensor:
    """Return Â, the likelier actions; of two equal ones, frozen."""
    return (probabilities > 0.5).to(probabilities.dtype)


def reward(actions: Tensor, is_hit: Tensor, gamma: float, kind: Literal["paper", "authors"]) -> Tensor:
    """Return R, ``(instances,)``.

    Args:
        actions: ``(instances, blocks)``, 1 fine-tuned, 0 frozen.
        is_hit: ``(instances,)``, whether the positive ranks high enough.
        gamma: γ, what a miss costs.
        kind: ``"paper"`` (Eq. 13) or ``"authors"``.
    """
    share = actions.mean(dim=-1)  # (instances,)
    of_hit = 1 - share**2 if kind == "paper" else 1 - gamma * (1 - share) ** 2  # Eq. 13
    return torch.where(is_hit, of_hit, -gamma)


def self_critical(probabilities: Tensor, actions: Tensor, advantage: Tensor, row: Tensor) -> Tensor:
    """Return L_RL, a scalar: the mean of Eq. 14 over instances.

    Args:
        probabilities: p(A_l = 1), ``(users, blocks)``.
        actions: A, ``(users, blocks)``, 1 or 0.
        advantage: R(A) − R(Â), ``(instances,)``.
        row: Whose instance each is, ``(instances,)``.
    """
    log_probability = torch.where(actions == 1, probabilities, 1 - probabilities).log().sum(dim=-1)  # (users,)
    return -(log_probability[row] * advantage).mean()  # Eq. 14

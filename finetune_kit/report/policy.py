"""What a policy does, in numbers and in words: how many different choices it makes, and how far it is from chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune_kit.training.measure import COLLAPSED_DEVIATION, COLLAPSED_SHARE


@dataclass(frozen=True)
class PolicySummary:
    """What the gates of all users say about a policy.

    A *choice* is a user's gates, each rounded to frozen (0, up to 0.5) or fine-tuned (1).

    Args:
        users: Number of users.
        usage: Mean gate per block: for hard gates, the share of users on the fine-tuned branch (Fig. 3).
        spread: Standard deviation of the gates over users, per block.
        entropy: Binary entropy of the usage in bits, mean over blocks; 1 where half of the users are fine-tuned.
        information: Mutual information between a user and the branch taken, bits per block: the entropy of the
            usage less the mean entropy of the users' own gates. 0 where all users have the same gates.
        choices: Number of different choices.
        effective: Effective number of choices: exp of the entropy (nats) of the choices' distribution.
        commonest: The commonest choice, one 0 or 1 per block.
        share: Share of users who make it.
        alike: Share of users with the commonest gates, rounded to 0.01; equals ``share`` for hard gates.
        distance: Total variation distance between the choices' distribution and the uniform one over all 2^blocks.
        is_hard: Whether every gate is 0 or 1.
    """

    users: int
    usage: tuple[float, ...]
    spread: tuple[float, ...]
    entropy: float
    information: float
    choices: int
    effective: float
    commonest: tuple[int, ...]
    share: float
    alike: float
    distance: float
    is_hard: bool

    @property
    def is_collapsed(self) -> bool:
        """Whether (nearly) all users are treated alike, by the rule that ``metrics.json`` follows."""
        return self.alike >= COLLAPSED_SHARE or max(self.spread) < COLLAPSED_DEVIATION


def policy_summary(gates: np.ndarray) -> PolicySummary:
    """Return what gates ``(users, blocks)`` in [0, 1] say."""
    gates = np.asarray(gates, dtype=np.float64)
    usage = gates.mean(axis=0)
    entropy = float(binary_entropy(usage).mean())
    choices, counts = np.unique(gates > 0.5, axis=0, return_counts=True)  # (choices, blocks), (choices,)
    shares = counts / len(gates)
    return PolicySummary(
        users=len(gates),
        usage=tuple(usage.tolist()),
        spread=tuple(gates.std(axis=0).tolist()),
        entropy=entropy,
        information=max(0.0, entropy - float(binary_entropy(gates).mean())),
        choices=len(choices),
        effective=float(np.exp(-(shares * np.log(shares)).sum())),
        commonest=tuple(choices[counts.argmax()].astype(int).tolist()),
        share=float(shares.max()),
        alike=float(np.unique(gates.round(2), axis=0, return_counts=True)[1].max() / len(gates)),
        distance=float(np.maximum(shares - 0.5 ** gates.shape[1], 0).sum()),
        is_hard=bool(np.isin(gates, (0, 1)).all()),
    )


def random_summary(users: int, blocks: int, seed: int = 0) -> PolicySummary:
    """Return what a policy that throws a fair coin per user and block gives for so many of them."""
    return policy_summary(np.random.default_rng(seed).integers(0, 2, size=(users, blocks)))


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Return −p log2 p − (1 − p) log2(1 − p), elementwise, in bits."""
    both = np.stack([probability, 1 - probability])
    logarithms = np.log2(both, out=np.zeros_like(both), where=both > 0)
    return -(both * logarithms).sum(axis=0)


def collapse_words(name: str, summary: PolicySummary) -> str | None:
    """Return a sentence for a policy that treats its users alike, None for one that does not.

    Args:
        name: Whose policy, e.g. ``"uaf-hard, seed 0"``.
        summary: What it does.
    """
    share = max(summary.share, summary.alike)
    if share < COLLAPSED_SHARE and not summary.is_collapsed:
        return None
    users = f"all {summary.users:,}" if share == 1 else f"{percent(share)} of {summary.users:,}"
    if summary.is_hard:
        return f"{name}: {users} users take the same blocks: {_digits(summary.commonest)} ({_blocks(summary)})"
    if summary.is_collapsed:
        gates = " ".join(f"{gate:.2f}" for gate in summary.usage)
        return (
            f"{name}: {users} users get (nearly) the same gates: {gates} on average, with a standard deviation over "
            f"users of at most {max(summary.spread):.2g}"
        )
    return (
        f"{name}: {users} users are on the same side of 0.5 in every block ({_blocks(summary)}), but their gates "
        f"differ, by a standard deviation of up to {max(summary.spread):.2f}"
    )


def percent(share: float) -> str:
    """Return a share as a percentage that is 100 for 1 alone and 0 for 0 alone, e.g. ``"99.4 %"``."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def _digits(choice: tuple[int, ...]) -> str:
    return " ".join(map(str, choice))


def _blocks(summary: PolicySummary) -> str:
    """Return which blocks the commonest choice fine-tunes, counted from 1."""
    tuned = [str(k + 1) for k, choice in enumerate(summary.commonest) if choice]
    if not tuned:
        return "fine-tuned: no block"
    if len(tuned) == len(summary.commonest):
        return "fine-tuned: every block"
    return f"fine-tuned: block{'s' * (len(tuned) > 1)} {', '.join(tuned)}"

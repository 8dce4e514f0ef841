"""Strategies that decide per user which branch of a block to take (UAF and its kin), and the policies that decide."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategies; ``authors`` is what the authors' own code does otherwise than their paper."""
    return [
        Component(
            "uaf-hard",
            "Per user and block, frozen or fine-tuned, learned by Gumbel-softmax (TKDE 2021)",
            "ftkit_uaf.hard:UafHard",
            variants={"authors": {"logits": "sigmoid", "evaluation": "sample"}},
        ),
        Component(
            "uaf-soft",
            "Per user and block, a learned mixture of frozen and fine-tuned (TKDE 2021)",
            "ftkit_uaf.soft:UafSoft",
            variants={"authors": {}},
        ),
        Component(
            "uaf-rl",
            "Per user and block, frozen or fine-tuned, learned by self-critical reward (TKDE 2021)",
            "ftkit_uaf.rl:UafRl",
            variants={"authors": {"reward": "authors"}},
            # so that both phases are seen, and each branch is drawn
            contract={"options": {"curriculum_epochs": 1, "num_candidates": 5}, "num_epochs": 4},
        ),
        Component(
            "uaf-random",
            "Per user and block, frozen or fine-tuned by a fixed coin: the control (TKDE 2021)",
            "ftkit_uaf.random:UafRandom",
            variants={"authors": {}},
        ),
        Component(
            "spottune",
            "Per user and block, frozen or fine-tuned, in at most k blocks if wanted (CVPR 2019)",
            "ftkit_uaf.spottune:SpotTune",
            variants={"authors": {"evaluation": "sample"}},
        ),
        Component(
            "skip",
            "Per user and block, frozen, fine-tuned or skipped, which saves compute (after SkipRec, AAAI 2021)",
            "ftkit_uaf.skip:Skip",
            contract={"num_epochs": 4},  # so that each branch is drawn
        ),
    ]


@hookimpl
def ftkit_policies() -> list[Component]:
    """Offer the policies of the UAF paper, and the control that it lacks."""
    return [
        Component(
            "conv",
            "Own item embedding, two NextItNet blocks, mean over positions, linear",
            "ftkit_uaf.policies:ConvPolicy",
            variants={"authors": {"mask_padding": False}},
        ),
        Component(
            "gru",
            "Own item embedding, one GRU over the user's items, its last state, linear",
            "ftkit_uaf.policies:GruPolicy",
        ),
        Component(
            "global",
            "One learned decision per block for all users alike: the control for learned policies",
            "ftkit_uaf.policies:GlobalPolicy",
            contract={"is_personal": False},
        ),
    ]

"""Strategies that fine-tune everything, but by a schedule, a pull towards the start, or an interpolation."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategies."""
    return [
        Component(
            "gradual-unfreezing",
            "Everything is trained, the head first, then one block more each time (ACL 2018)",
            "ftkit_schedules.gradual_unfreezing:GradualUnfreezing",
            contract={"num_epochs": 4},  # head, two blocks, all
        ),
        Component(
            "l2-sp",
            "Everything is trained and pulled back to where it started (ICML 2018)",
            "ftkit_schedules.l2_sp:L2SP",
        ),
        Component(
            "lp-ft",
            "The head is trained first, then everything from there (ICLR 2022)",
            "ftkit_schedules.lp_ft:LpFt",
            contract={"options": {"probe_epochs": 1}},  # so that two epochs see both phases
        ),
        Component(
            "wise-ft",
            "Everything is trained; weights between before and after are used (CVPR 2022)",
            "ftkit_schedules.wise_ft:WiseFt",
        ),
    ]

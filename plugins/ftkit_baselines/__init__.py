"""The baselines that UAF is measured against."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the built-in baselines."""
    target = "ftkit_baselines.finetune:"
    return [
        Component(
            "finetune-zero",
            "No pre-training: everything is learned on the target domain alone",
            f"{target}FinetuneZero",
        ),
        Component(
            "finetune-cls", "The pre-trained backbone stays as it is; only the head is trained", f"{target}FinetuneCls"
        ),
        Component("finetune-last", "The head and the last n residual blocks are trained", f"{target}FinetuneLast"),
        Component(
            "finetune-last1", "The head and the last residual block are trained", f"{target}FinetuneLast", {"n": 1}
        ),
        Component(
            "finetune-last2", "The head and the last two residual blocks are trained", f"{target}FinetuneLast", {"n": 2}
        ),
        Component(
            "finetune-all", "Everything is trained, starting from the pre-trained backbone", f"{target}FinetuneAll"
        ),
        Component(
            "mtl",
            "No pre-training: one backbone learns source and target domain at once",
            "ftkit_baselines.mtl:Mtl",
        ),
        Component(
            "peterrec",
            "Adapters inside the frozen pre-trained backbone are trained (SIGIR 2020)",
            "ftkit_baselines.peterrec:PeterRec",
        ),
    ]

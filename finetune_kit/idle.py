"""Options that somebody set and nothing will read, so that they are told."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_kit.config import Config, resolve_config
from finetune_kit.plugins import installed
from finetune_kit.sections import label_of

_RANKING = "a profile label is told, nothing is ranked"


def idle_options(config: Config) -> Iterator[str]:
    """Yield the options that differ from what the run's preset has without having an effect, each with the reason."""
    usual = resolve_config({"run": config.run.model_dump()}).tables()
    given = config.tables()
    for name, reason in _reasons(config).items():
        section, _, option = name.partition(".")
        if given[section][option] != usual[section][option]:
            yield f"{name} = {given[section][option]} has no effect: {reason}"


def _reasons(config: Config) -> dict[str, str]:
    """Return the options that nothing reads in this configuration, and why."""
    reasons = {}
    if label_of(config.run.task) is not None:
        reasons |= {
            "finetune.loss": "labels are learned by cross-entropy",
            "finetune.num_negatives": _RANKING,
            "evaluation.protocols": _RANKING,
            "evaluation.cutoffs": _RANKING,
            "evaluation.num_candidates": _RANKING,
            "evaluation.references": "beside labels stands the commonest class",
        }
    elif config.finetune.loss == "softmax":
        reasons["finetune.num_negatives"] = "finetune.loss = softmax takes all items"
    if "sampled" not in config.evaluation.protocols:
        reasons.setdefault("evaluation.num_candidates", "evaluation.protocols has no sampled ranking")
    if config.pretrain.loss != "sampled-softmax":
        reasons["pretrain.num_negatives"] = f"pretrain.loss = {config.pretrain.loss} takes all items"
    if config.finetune.cache == "off":
        reasons["finetune.cache_memory"] = "finetune.cache = off keeps nothing"
    strategy = installed().component("strategy", config.run.strategy).load()
    own = strategy.idle_options(config.strategy)
    return {**reasons, **{f"strategy.{option}": reason for option, reason in own.items()}}

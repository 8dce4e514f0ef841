"""How a strategy refuses a backbone: in one line that names both."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_kit.backbone import Backbone
from finetune_kit.strategy import Strategy

if TYPE_CHECKING:
    from finetune_kit.testing.strategy_contract import StrategyContract


@cache
def refusal_of(contract: type[StrategyContract], backbone_class: Any) -> str | None:
    """Return what `StrategyContract.refusal` says, or None where it breaks: then the tests shall show it."""
    try:
        return contract().refusal(backbone_class)
    except Exception:
        return None


def assert_names(message: str, strategy: type[Strategy], backbone: Backbone) -> None:
    """Assert that a refusal is one line that names both who refuses and whom."""
    assert "\n" not in message
    for name in (strategy.__name__, type(backbone).__name__):
        assert name.lower() in message.lower(), f"{name} is not named: {message}"

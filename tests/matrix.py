"""Every strategy on every built-in backbone: which pairs there are, and the table of them in docs/matrix.md.

``python tests/matrix.py`` writes that page anew. That the promises are kept is what `test_matrix.py` finds out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from finetune_kit.plugins import installed
from finetune_kit.testing import StrategyContract, installed_backbone

PAGE = Path(__file__).parent.parent / "docs" / "matrix.md"
SMALL: dict[str, dict[str, Any]] = {"transformers": {"num_heads": 2}}
"""What some backbones need beside ``dim`` and ``num_blocks`` to be small."""
BACKBONES = [
    installed_backbone(name, dim=8, num_blocks=2, **SMALL.get(name, {})) for name in installed().components("backbone")
]
HEAD = """\
# Strategies × backbones

Which built-in strategy runs on which built-in backbone. This page is written by `python tests/matrix.py`; a test fails
when it is not what that writes.

✓: all promises of `finetune_kit.testing.StrategyContract` are kept, each tried by `tests/test_matrix.py` on a small
backbone of the kind ([what they are](hooks/ftkit_strategies.md)). A number: the strategy refuses the backbone, in the
words below, before anything is trained.
"""


def usual_backbone(strategy: str) -> str:
    """Return the name of a backbone that a strategy takes."""
    return "sasrec" if strategy.startswith("peft:") else "nextitnet"


def contract(strategy: str) -> type[StrategyContract]:
    """Return the contract of an installed strategy over all built-in backbones."""
    attributes = {
        "strategy": strategy,
        "backbones": BACKBONES,
        **installed().component("strategy", strategy).contract,
    }
    name = "Test" + re.sub(r"\W", " ", strategy).title().replace(" ", "")
    return type(name, (StrategyContract,), attributes)


def page() -> str:
    """Return the text of docs/matrix.md."""
    refusals: list[str] = []
    rows = []
    for strategy in installed().components("strategy"):
        cells = [_cell(contract(strategy)().refusal(backbone), refusals) for backbone in BACKBONES]
        rows.append(f"| `{strategy}` | {' | '.join(cells)} |")
    head = f"| strategy | {' | '.join(f'`{backbone.name}`' for backbone in BACKBONES)} |"
    rule = f"| --- | {' | '.join(':---:' for _ in BACKBONES)} |"
    notes = [f"{number}. {words}" for number, words in enumerate(refusals, 1)]
    return "\n".join([HEAD, head, rule, *rows, "", *notes]) + "\n"


def _cell(refusal: str | None, refusals: list[str]) -> str:
    """Return what stands in the table for a pair; new words of a refusal are added to ``refusals``."""
    if refusal is None:
        return "✓"
    if refusal not in refusals:
        refusals.append(refusal)
    return str(refusals.index(refusal) + 1)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

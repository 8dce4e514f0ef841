"""For authors of plugins: the promises of strategies, backbones, policies and dataset readers, as tests to inherit.

Needs pytest and hypothesis (``pip install finetune-kit[testing]``). A strategy's whole contract::

    from finetune_kit.testing import StrategyContract

    class TestBitFitNorms(StrategyContract):
        strategy = "bitfit-norms"

`backbones` and `batches` draw for Hypothesis::

    @given(backbone=backbones(), batch=batches())
    def test_it_starts_as_the_backbone(backbone, batch): ...

The pretend accelerator that the contracts use is `finetune_kit.pretend`.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "finetune_kit.testing.backbone_contract",
    "finetune_kit.testing.dataset_contract",
    "finetune_kit.testing.policy_contract",
    "finetune_kit.testing.refusals",
    "finetune_kit.testing.strategy_contract",
)

from finetune_kit.testing.backbone_contract import BackboneContract  # noqa: E402  (after the line above)
from finetune_kit.testing.backbones import (  # noqa: E402  (so are these)
    BufferedBackbone,
    GlobalBackbone,
    TinyBackbone,
    backbones,
    randomise,
    tiny_backbones,
)
from finetune_kit.testing.batches import (  # noqa: E402  (so are these)
    batches,
    random_batch,
    random_sequence,
    random_windows,
    sequences,
    windows,
)
from finetune_kit.testing.dataset_contract import DatasetContract  # noqa: E402  (so are these)
from finetune_kit.testing.installed_backbones import installed_backbone  # noqa: E402  (so are these)
from finetune_kit.testing.policy_contract import PolicyContract  # noqa: E402  (so are these)
from finetune_kit.testing.strategy_contract import StrategyContract  # noqa: E402  (so are these)

__all__ = [
    "BackboneContract",
    "BufferedBackbone",
    "DatasetContract",
    "GlobalBackbone",
    "PolicyContract",
    "StrategyContract",
    "TinyBackbone",
    "backbones",
    "batches",
    "installed_backbone",
    "random_batch",
    "random_sequence",
    "random_windows",
    "randomise",
    "sequences",
    "tiny_backbones",
    "windows",
]

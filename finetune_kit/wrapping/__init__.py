"""Turn a sequential model that someone else wrote into a backbone, without editing it."""

from __future__ import annotations

from finetune_kit.wrapping.backbone import WrappedBackbone, wrap

__all__ = ["WrappedBackbone", "wrap"]

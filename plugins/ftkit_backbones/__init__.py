"""Sequential backbones that come with finetune-kit."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_backbones() -> list[Component]:
    """Offer the built-in backbones."""
    return [
        Component(
            "nextitnet",
            "Dilated causal convolutions in residual blocks (Yuan et al., WSDM 2019)",
            "ftkit_backbones.nextitnet:NextItNet",
            variants={
                "paper": {"dim": 128, "num_blocks": 8},
                "authors": {"dim": 128, "num_blocks": 8, "mask_padding": False},
            },
        ),
        Component(
            "sasrec",
            "Causal self-attention in residual blocks (Kang & McAuley, ICDM 2018)",
            "ftkit_backbones.sasrec:SasRec",
            variants={"paper": {"dim": 50, "num_blocks": 2, "num_heads": 1}},
        ),
        Component(
            "gru4rec",
            "Gated recurrent layers in residual blocks (Hidasi et al., ICLR 2016)",
            "ftkit_backbones.gru4rec:Gru4Rec",
            variants={"paper": {"dim": 100, "num_blocks": 1}},
        ),
        Component(
            "bert4rec",
            "Bidirectional self-attention, pre-trained on hidden items (Sun et al., CIKM 2019)",
            "ftkit_backbones.bert4rec:Bert4Rec",
            variants={"paper": {"num_blocks": 2}},
        ),
        Component(
            "transformers",
            "GPT-2, Llama or BERT of Hugging Face's transformers, from random weights",
            "ftkit_backbones.hugging_face:HuggingFace",
        ),
    ]

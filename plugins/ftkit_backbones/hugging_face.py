"""Language models of Hugging Face's ``transformers`` as backbones: items are their tokens.

The model is made from a configuration and starts from random weights; nothing is downloaded. Its own code computes,
`finetune_kit.wrapping` only takes it apart into embed ▸ blocks ▸ finish.

| architecture | paper | block | is causal |
| --- | --- | --- | --- |
| ``gpt2`` | Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019 | ``h[k]`` | yes |
| ``llama`` | Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, 2023 | ``layers[k]`` | yes |
| ``bert`` | Devlin et al., *BERT*, NAACL 2019, https://arxiv.org/abs/1810.04805 | ``encoder.layer[k]`` | no |

Each block is an attention and a feed-forward network with their residuals; sites stand at the end of both.

Differences from the papers: the vocabulary is that of the source items, and sizes are those of the other backbones. The
feed-forward networks of ``llama`` and ``bert`` are four times as wide as hidden states, like that of ``gpt2``, unless
``config.intermediate_size`` says otherwise. The models number positions from a user's first item; padding has position
0, is looked at by nothing but itself, and so changes nothing. ``bert`` is pre-trained on hidden items, which a vector
of its own stands for, and never sees a second sentence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from finetune_kit.errors import OptionError, PluginError, did_you_mean, one_line
from finetune_kit.options import Options
from finetune_kit.wrapping import WrappedBackbone
from ftkit_backbones.attention import refuse_heads_that_do_not_divide, visible_positions


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Where the parts of a model stand, by dotted name.

    Args:
        embedding: Of items.
        blocks: The residual blocks.
        finish: What is called after them.
        sites: Submodules of each block at which a patch can be put, ``(users, length, dim)`` → same shape.
        is_causal: Whether no position sees a later one.
    """

    embedding: str
    blocks: str
    finish: Sequence[str]
    sites: Sequence[str]
    is_causal: bool = True


ARCHITECTURES = {
    "gpt2": Architecture("wte", "h", ["ln_f"], ["attn.c_proj", "mlp"]),
    "llama": Architecture("embed_tokens", "layers", ["norm"], ["self_attn.o_proj", "mlp"]),
    # What follows the last matrix of bert's feed-forward network stands for it: the network has no module of its own.
    "bert": Architecture(
        "embeddings.word_embeddings", "encoder.layer", [], ["attention.output.dense", "output.dropout"], is_causal=False
    ),
}

OUT_OF_PLACE = {
    *("add_cross_attention", "is_decoder", "pretraining_tp", "tie_word_embeddings", "classifier_dropout"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
}
"""Fields of configurations that here have no effect, or break what the table above says."""


class HuggingFaceOptions(Options):
    """Options of models of ``transformers``."""

    architecture: Literal["gpt2", "llama", "bert"] = "gpt2"
    """The model: causal gpt2 or llama, or bert, which sees later items and is pre-trained on hidden ones."""
    dim: int = Field(64, ge=1)
    """Width of item embeddings and hidden states."""
    num_blocks: int = Field(4, ge=1)
    """Residual blocks, an attention and a feed-forward network each."""
    num_heads: int = Field(2, ge=1)
    """Attention heads; they share the width, which they must divide."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Any other field of the model's configuration class in transformers, e.g. backbone.config.resid_pdrop=0.2."""

    @field_validator("config")
    @classmethod
    def _typed(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return values typed on a command line as what they stand for: 0.2, true, or else text."""
        return {name: _parsed(value) if isinstance(value, str) else value for name, value in config.items()}

    @model_validator(mode="after")
    def _check(self) -> HuggingFaceOptions:
        refuse_heads_that_do_not_divide(self.dim, self.num_heads)
        if self.config:  # only then, so that transformers is not imported for nothing
            make_config(1, 1, self)
        return self


class HuggingFace(WrappedBackbone):
    """A model of ``transformers``, as described at the top of this file.

    Args:
        num_items: Items of the source domain.
        max_length: The longest sequence it will be given.
        options: A filled `HuggingFaceOptions`; None takes the defaults.

    Raises:
        PluginError: When transformers is not installed.
    """

    Options = HuggingFaceOptions
    options: HuggingFaceOptions

    def __init__(self, num_items: int, max_length: int, options: HuggingFaceOptions | None = None) -> None:
        options = HuggingFaceOptions() if options is None else options
        described = ARCHITECTURES[options.architecture]

        def inputs(sequence: Tensor) -> dict[str, Tensor]:
            return model_inputs(sequence, is_causal=described.is_causal)

        super().__init__(
            make_model(num_items, max_length, options),
            embedding=described.embedding,
            blocks=described.blocks,
            finish=described.finish,
            sites=described.sites,
            inputs=inputs,
            is_causal=described.is_causal,
            max_length=max_length,
            options=options,
        )
        with torch.no_grad():
            self.item_embedding.weight[0] = 0


def model_inputs(sequence: Tensor, *, is_causal: bool) -> dict[str, Tensor]:
    """Return what a model is called with, from item ids ``(users, length)``, left-padded with 0."""
    return {
        "input_ids": sequence,
        "attention_mask": visible_positions(sequence, is_causal=is_causal),  # four dimensions: taken as they are
        "position_ids": ((sequence != 0).cumsum(dim=1) - 1).clamp(min=0),
    }


def make_model(num_items: int, max_length: int, options: HuggingFaceOptions) -> nn.Module:
    """Return a model with random weights, as `HuggingFace` takes it apart."""
    config = make_config(num_items, max_length, options)
    return import_transformers().AutoModel.from_config(config, attn_implementation="sdpa")


def make_config(num_items: int, max_length: int, options: HuggingFaceOptions) -> Any:
    """Return the configuration of a model.

    Raises:
        OptionError: For a field that the configuration class does not have, or a value that it does not take.
    """
    decided = {
        "vocab_size": num_items + 1,
        "max_position_embeddings": max_length,
        "hidden_size": options.dim,
        "num_hidden_layers": options.num_blocks,
        "num_attention_heads": options.num_heads,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,  # blocks would note keys and values of one batch for the next
    }
    config_class = import_transformers().CONFIG_MAPPING[options.architecture]
    refuse_other_fields(config_class, options.config, decided)
    default = {} if options.architecture == "gpt2" else {"intermediate_size": 4 * options.dim}
    try:
        return config_class(**decided, **{**default, **options.config})
    except Exception as error:  # the configuration class checks types and more, each by an error of its own
        raise OptionError(f"config does not fit {config_class.__name__}: {one_line(error)}") from error


def refuse_other_fields(config_class: Any, given: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
    """Refuse names that are no field of a configuration class, or are decided by other options.

    Raises:
        OptionError: Naming the field that was probably meant.
    """
    common = {field.name for field in dataclasses.fields(import_transformers().PreTrainedConfig)}
    taken = {config_class.attribute_map.get(name, name) for name in decided} | set(decided)
    fields = {field.name for field in dataclasses.fields(config_class)} - common - taken - OUT_OF_PLACE
    for name in given:
        if name in taken:
            raise OptionError(
                f"config.{name} follows from the data and the other options of the backbone; leave it out"
            )
        if name not in fields:
            raise OptionError(
                f"config has no field {name!r}.{did_you_mean(name, fields)} "
                f"Fields of {config_class.__name__} that can be set: {', '.join(sorted(fields))}"
            )


def import_transformers() -> ModuleType:
    """Return the package ``transformers``.

    Raises:
        PluginError: When it is not installed; says how to install it.
    """
    try:
        import transformers
    except ImportError as error:
        raise PluginError(
            "the backbone 'transformers' needs the package of that name; pip install 'finetune-kit[transformers]'"
        ) from error
    return transformers


def _parsed(text: str) -> Any:
    """Return what JSON makes of a text, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text

"""Methods of Hugging Face's PEFT library, put on the layers of a backbone's blocks.

Mangrulkar et al.: *PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods*,
https://github.com/huggingface/peft. Which equation holds is the method's matter: ``strategy.method`` names it,
``strategy.config`` has the fields of its configuration class.

PEFT knows layers by their class and replaces them by its own, so it fits some blocks and not others, and does not
always notice. Therefore a step of training is tried out when it is put in (`probe.py`): if it has no effect, acts
otherwise in evaluation, can't be merged into the weights or breaks causality, it is refused. (PEFT 0.21's LoRA, e.g.,
leaves out the dilation of a Conv1d, and finds no way with NextItNet's own convolutions.) The strategy ``lora`` of this
package acts on weights instead of layers and so fits all blocks.

Differences from PEFT's own use: by default every linear and convolutional layer of the blocks is adapted. All that was
there before is frozen, in evaluation mode, dropout off; PEFT's own dropout is on in training. Methods that share
parameters between layers (vera, vblora, …), put tokens before the sequence (prompt-tuning, …) or take part in the
training loop (adalora) don't fit in.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from finetune_kit.backbone import Backbone
from finetune_kit.errors import OptionError, PluginError, did_you_mean, one_line
from finetune_kit.options import Options
from finetune_kit.strategy import Strategy
from ftkit_adapters.probe import find_fault

if TYPE_CHECKING:
    from peft import PeftConfig

OWN_FIELDS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type", "peft_version"}
    | {"revision", "target_modules", "task_type"}
)
"""Fields of PEFT's configurations that say where to put it and what for, which is decided here."""
DEFAULTS: dict[str, Any] = {"feedforward_modules": []}
"""Fields that some methods (ia3) want to be told for models that they don't know."""


class PeftOptions(Options):
    """Options of PEFT's methods."""

    method: str
    """PEFT's name of the method, e.g. lora, ia3 or oft."""
    target_modules: tuple[str, ...] = Field(("*",), min_length=1)
    """Which linear and convolutional layers are adapted: patterns over their names within a block, e.g. *conv1."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the method's PEFT configuration, e.g. strategy.config.r=4 for lora."""


class Peft(Strategy):
    """Train what a method of PEFT puts on the layers of the blocks, and the head; the backbone stays as it was."""

    Options = PeftOptions
    options: PeftOptions

    def build(self) -> None:
        """Freeze the backbone, let PEFT replace layers of its blocks, and try out whether that works.

        Raises:
            OptionError: For a method or a field that PEFT does not have, or a pattern that matches no layer.
            PluginError: When PEFT is not installed, or the method does not work on these blocks.
        """
        method, name = self.options.method, type(self.backbone).__name__
        config_class = _config_class(method)
        config = _config(config_class, self.options.config, _chosen_layers(self.backbone, self.options.target_modules))
        self.freeze(self.backbone)
        try:
            with warnings.catch_warnings():
                # it says so of GPT-2's layers, sets it as they need it, and so does what is wanted
                warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning, "peft")
                # oft's default does not divide every width; it takes the nearest that does
                warnings.filterwarnings("ignore", "Invalid `oft_block_size`", UserWarning, "peft")
                _peft().inject_adapter_in_model(config, self.backbone.blocks)
            fault = find_fault(self.backbone, _merged)
        except Exception as error:  # PEFT may raise anything
            fault = f"it fails with {one_line(error, with_type=True)}"
        if fault is not None:
            raise PluginError(
                f"PEFT's {method} does not work on the blocks of {name}: {fault}; "
                f"{'mend strategy.config, ' if self.options.config else ''}choose other layers with "
                "strategy.target_modules, or use the strategy lora, which acts on the weights of any layer"
            )

    def merged_backbone(self) -> Backbone:
        """Return the plain backbone with PEFT's changes merged into its weights."""
        return _merged(self.backbone)


def _peft() -> Any:
    """Return the PEFT library, imported when it is first used.

    Raises:
        PluginError: When it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise PluginError(
            f"the strategies peft:… need Hugging Face's PEFT, which is not here ({error}); install it with: "
            "pip install 'finetune-kit[peft]'"
        ) from error
    return peft


def _chosen_layers(backbone: Backbone, patterns: tuple[str, ...]) -> list[str]:
    """Return the names, from ``backbone.blocks`` on, of the layers that shall be adapted."""
    known = {
        f"{k}.{name}": name for k, block in enumerate(backbone.blocks) for name in _layers(block)
    }  # from its name within all blocks to that within its own
    if not known:
        raise PluginError(
            f"PEFT's methods adapt linear and convolutional layers, and the blocks of {type(backbone).__name__} have "
            "none; use the strategy lora, which acts on the weights of any layer"
        )
    within = list(dict.fromkeys(known.values()))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in within):
            raise OptionError(
                f"strategy.target_modules: {pattern!r} matches no layer of the blocks.{did_you_mean(pattern, within)} "
                f"They have: {', '.join(within)}"
            )
    return [path for path, name in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _layers(block: nn.Module) -> list[str]:
    """Return the names of a block's linear and convolutional layers, but for those whose weights attention reads."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear map; PEFT has transformers with it

    attention = tuple(name for name, part in block.named_modules() if isinstance(part, nn.MultiheadAttention))
    return [
        name
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | Conv1D) and name.rpartition(".")[0] not in attention
    ]


def _config(config_class: type[Any], given: dict[str, Any], layers: list[str]) -> PeftConfig:
    """Return PEFT's configuration of a method for layers by their names, what is given for its fields checked."""
    hints = get_type_hints(config_class)
    known = [field.name for field in dataclasses.fields(config_class) if field.name not in OWN_FIELDS]
    values = {name: value for name, value in DEFAULTS.items() if name in known}
    for name, value in given.items():
        if name not in known:
            raise OptionError(
                f"no option strategy.config.{name}.{did_you_mean(name, known)} {config_class.__name__} has: "
                f"{', '.join(known)}"
            )
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)  # text, where it is from a command line
        except ValidationError as error:
            raise OptionError(f"strategy.config.{name} = {value!r}: {error.errors()[0]['msg']}") from None
    try:
        return config_class(target_modules="|".join(map(re.escape, layers)), **values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"strategy.config does not fit {config_class.__name__}: {one_line(error)}") from error


def _config_class(method: str) -> type[Any]:
    """Return the configuration class of one of PEFT's methods.

    Raises:
        OptionError: When PEFT has no such method, or it can't be put on single layers.
    """
    mapping = _peft().mapping
    methods = {
        kind.value.lower(): mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind, tuner in mapping.PEFT_TYPE_TO_TUNER_MAPPING.items()
        if not getattr(tuner, "uses_shared_state", True)
    }
    methods.pop("adalora", None)  # without PEFT's own training loop it never moves its ranks
    if method not in methods:
        raise OptionError(
            f"strategy.method = {method!r} is no method of PEFT that can be put on single layers."
            f"{did_you_mean(method, methods)} Those are: {', '.join(sorted(methods))}"
        )
    return methods[method]


def _merged(backbone: Backbone) -> Backbone:
    """Return a copy of a backbone with PEFT's layers merged and the plain ones in their places again."""
    layer_class = _peft().tuners.tuners_utils.BaseTunerLayer
    backbone = copy.deepcopy(backbone)
    for name, layer in list(backbone.blocks.named_modules()):
        if isinstance(layer, layer_class):
            layer.merge()
            backbone.blocks.set_submodule(name, layer.get_base_layer())
    return backbone

"""Bring a backbone that was pre-trained elsewhere, as the folder that `ftkit pretrain` would have written."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune_kit.backbone import Backbone
from finetune_kit.config import Config, resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import CheckpointError, DataError
from finetune_kit.training.assemble import build_backbone
from finetune_kit.training.folders import write_base
from finetune_kit.tryout import evaluating, made_up_sequence, relative_difference

TOLERANCE = 1e-4
"""How far user vectors may differ, relative to the largest value: another device or version rounds otherwise."""


def save_pretrained(backbone: Backbone, name: str, dataset: Dataset, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a backbone with its weights as a base that ``ftkit finetune --from FOLDER`` takes; return the folder.

    Args:
        backbone: Row ``i`` of its item embedding is the dataset's source item ``i``: ``raw_source_items()[i - 1]``.
        name: What it is installed as; ``ftkit backbones`` lists the names. The command line builds it anew from this
            name, ``backbone.options`` and ``backbone.max_length``, and loads the weights.
        dataset: What it will be fine-tuned on.
        folder: Where to; must hold no model yet.
        seed: Default seed of the runs that start from it.

    Raises:
        DataError: When it has another number of items than the dataset.
        CheckpointError: When the folder is taken, or the backbone built by that name is another one.
    """
    folder = Path(folder)
    if (folder / "model.json").exists():
        raise CheckpointError(f"{str(folder)!r} holds a model already; name another folder")
    if backbone.num_items != dataset.num_source_items:
        raise DataError(
            f"the backbone knows {backbone.num_items} items, {str(dataset.path)!r} has {dataset.num_source_items} "
            "source items; give the embedding one row per source item of the dataset, in its order, behind row 0"
        )
    config = resolve_config(
        {
            "run": {"backbone": name, "data": str(dataset.path.resolve()), "seed": seed, "trackers": []},
            "data": {"max_length": backbone.max_length},
            "backbone": backbone.options.model_dump(),
        }
    )
    _refuse_another(backbone, config)
    tensors = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
    num_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    write_base(folder, config, dataset, tensors, {"total_parameters": num_parameters, "seconds": {"pretrain": 0.0}})
    return folder


@torch.no_grad()
def _refuse_another(backbone: Backbone, config: Config) -> None:
    """Raise if what the command line would build, with the same weights, does not compute the same."""
    name, rebuilt = config.run.backbone, build_backbone(config, backbone.num_items)
    weights, wanted = backbone.state_dict(), rebuilt.state_dict()
    if differ := sorted(weights.keys() ^ wanted.keys()):
        raise CheckpointError(
            f"the backbone {name!r} has other weights than the one given: {len(differ)} names differ, "
            f"e.g. {differ[0]!r}; name the one that it is"
        )
    for key, tensor in weights.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{key!r} is {tuple(tensor.shape)} in the backbone given and {tuple(wanted[key].shape)} in {name!r}; "
                "do its options tell its sizes?"
            )
    rebuilt.load_state_dict(weights)
    rebuilt.to(backbone.item_embedding.weight.device)
    length = min(8, backbone.max_length)
    random = torch.Generator().manual_seed(0)
    sequence = made_up_sequence(2, length, backbone.num_items, random, num_known=[length, max(1, length - 1)])
    sequence = sequence.to(backbone.item_embedding.weight.device)
    with evaluating(backbone), evaluating(rebuilt):
        expected, found = backbone.user_vectors(sequence), rebuilt.user_vectors(sequence)
    if (difference := relative_difference(expected, found)) > TOLERANCE:
        raise CheckpointError(
            f"the backbone {name!r} computes something else from the same weights, by up to {difference:.3g} of the "
            "largest value; an option that it has no field for?"
        )

"""Strategies, backbones, policies and tasks in both formats, each file compared with its run."""

import pytest
from untrained import LENGTH, untrained_run

from finetune_kit.exporting.comparison import BATCHES, compare
from finetune_kit.exporting.formats import FORMATS
from finetune_kit.exporting.served import Served, strategy_to_export
from finetune_kit.exporting.tracing import traced
from finetune_kit.plugins import installed
from finetune_kit.training.assemble import Plain

DECIDING = {
    "skip": {"policy": "gru"},
    "spottune": {"policy": "gru", "k": 1, "evaluation": "sample"},
    "uaf-hard": {"policy": "conv"},
    "uaf-random": {},
    "uaf-rl": {"policy": "gru", "evaluation": "expected"},
    "uaf-soft": {"policy": "global"},
}
"""Strategies that decide per user, with options that between them show each policy and use of one."""
PATCHING = ["houlsby", "peterrec"]
"""Strategies that patch blocks in a way that is no change of weights; all others merge into a plain backbone."""


def assert_exported(dataset, folder, strategy, backbone=None, top=None, **how) -> None:
    """Write a run in both formats from one graph, and ask both for the users that the run is asked for."""
    run = untrained_run(dataset, strategy, backbone, **how)
    for is_topk_stable in (False, True) if top else (True,):
        served = Served(strategy_to_export(run), top, is_topk_stable=is_topk_stable).eval()
        graph = traced(served, strategy, LENGTH)
        for made in FORMATS.values():
            if top and made.is_topk_stable != is_topk_stable:
                continue
            made.write(graph, folder / made.file, None)
            found = compare(run, served, made.open(folder / made.file), list(graph.inputs))
            assert (found.num_users, found.num_otherwise) == (sum(BATCHES), 0)
            assert found.largest < 1e-5


@pytest.mark.parametrize("name", sorted(installed().components("strategy").keys() - {*DECIDING, *PATCHING}))
def test_every_other_strategy_is_exported_as_a_plain_backbone(name, dataset):
    run = untrained_run(dataset, name, backbone_options={"num_blocks": 2})
    served = Served(strategy_to_export(run))
    assert isinstance(served.strategy, Plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHING)
def test_every_strategy_that_patches_blocks(name, dataset, tmp_path):
    assert_exported(dataset, tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECIDING)
def test_every_strategy_that_decides_per_user(name, dataset, tmp_path):
    backbone = "nextitnet" if name == "uaf-hard" else "sasrec"
    assert_exported(dataset, tmp_path, name, backbone, **DECIDING[name])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", installed().components("backbone"))
def test_every_backbone(backbone, dataset, tmp_path):
    assert_exported(dataset, tmp_path, "finetune-all", backbone)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_every_architecture_of_hugging_face(architecture, dataset, tmp_path):
    options = {"architecture": architecture}
    assert_exported(dataset, tmp_path, "finetune-all", "transformers", backbone_options=options)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["items", "label:kind"])
def test_the_best_items_and_classes(task, dataset, tmp_path):
    assert_exported(dataset, tmp_path, "finetune-all", "sasrec", top=4, task=task)

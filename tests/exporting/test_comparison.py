import re

import numpy as np
import pytest
import torch
from untrained import LENGTH, untrained_run

from finetune_kit.errors import CheckpointError, PluginError
from finetune_kit.exporting.comparison import BATCHES, compare, users_to_ask
from finetune_kit.exporting.served import Served
from finetune_kit.training.merge import users_only

INPUTS = ["sequence", "user"]


def computing(served, change=lambda number, outputs: None):
    """Return a function that computes what a model does, and then changes the outputs of batch after batch."""
    numbers = iter(range(len(BATCHES)))

    @torch.no_grad()
    def compute(inputs):
        outputs = served(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
        change(next(numbers), outputs)
        return outputs

    return compute


def changing(name, amount, batch=2):
    def change(number, outputs):
        if number == batch:
            outputs[name] = outputs[name] + amount * abs(outputs[name]).max()

    return change


@pytest.mark.parametrize(("strategy", "task"), [("skip", "items"), ("uaf-soft", "items"), ("lora", "label:kind")])
@pytest.mark.parametrize("top", [None, 3])
def test_a_file_that_computes_the_same_does_not_differ(strategy, task, top, dataset):
    run = untrained_run(dataset, strategy, task=task)
    served = Served(run.strategy, top)
    found = compare(run, served, computing(served), INPUTS)
    assert (found.largest, found.num_users, found.num_otherwise) == (pytest.approx(0, abs=1e-6), sum(BATCHES), 0)


@pytest.mark.parametrize("top", [None, 3])
@pytest.mark.parametrize("amount", [1e-3, np.nan])
def test_scores_that_differ_in_one_batch_are_refused(amount, top, dataset):
    run = untrained_run(dataset, "finetune-all")
    served = Served(run.strategy, top)
    with pytest.raises(PluginError, match=r"^the exported 'finetune-all' differs from the run by (0\.001|inf) of the "):
        compare(run, served, computing(served, changing("scores", np.float32(amount))), INPUTS)


def test_other_items_among_the_best_are_refused(dataset):
    run = untrained_run(dataset, "finetune-all")
    served = Served(run.strategy, 3)

    def swap(number, outputs):
        outputs["items"] = outputs["items"][:, ::-1].copy()

    with pytest.raises(PluginError, match="differs from the run"):
        compare(run, served, computing(served, swap), INPUTS)


def test_soft_gates_that_differ_are_refused(dataset):
    run = untrained_run(dataset, "uaf-soft")
    with pytest.raises(PluginError, match="differs from the run"):
        compare(run, served := Served(run.strategy), computing(served, changing("gates", 0.01)), INPUTS)


@pytest.mark.parametrize("strategy", ["uaf-hard", "skip"])
def test_one_user_at_the_edge_may_take_the_other_branch_if_all_else_is_the_same(strategy, dataset):
    run = untrained_run(dataset, strategy)
    served = Served(run.strategy)

    def flip(number, outputs, *, is_honest=True):
        if number != 1:
            return
        outputs["gates"] = outputs["gates"].copy()
        outputs["gates"][0, 0] = outputs.get("skipped", outputs["gates"])[0, 0] == 0 and 1 - outputs["gates"][0, 0]
        if is_honest:
            sequence = users_to_ask(run)[1][1:3]
            gates = torch.from_numpy(outputs["gates"])
            if "skipped" in outputs:
                skipped = torch.from_numpy(outputs["skipped"])
                gates = torch.stack([gates, 1 - gates - skipped, skipped], dim=-1)
            batch = users_only(torch.ones(2, dtype=torch.int64), sequence)
            outputs["scores"] = run.strategy.task.scores(run.strategy.encode_with(batch, gates).vectors).numpy()

    found = compare(run, served, computing(served, flip), INPUTS)
    assert (found.num_otherwise, found.largest) == (1, pytest.approx(0, abs=1e-5))
    with pytest.raises(PluginError, match="differs from the run"):
        compare(run, served, computing(served, lambda *given: flip(*given, is_honest=False)), INPUTS)


def test_two_users_who_take_another_branch_are_too_many(dataset):
    run = untrained_run(dataset, "uaf-hard")

    def flip(number, outputs):
        outputs["gates"] = 1 - outputs["gates"]

    with pytest.raises(PluginError, match=f"decides otherwise than the run for {sum(BATCHES)} of {sum(BATCHES)} users"):
        compare(run, served := Served(run.strategy), computing(served, flip), INPUTS)


def test_a_run_whose_scores_are_no_numbers_is_refused(dataset):
    run = untrained_run(dataset, "finetune-all")
    with torch.no_grad():
        run.strategy.task.head.bias.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=re.escape("scores of the run in 'somewhere' are not all finite")):
        compare(run, served := Served(run.strategy), computing(served), INPUTS)


def test_users_without_items_with_one_and_with_many_are_asked_for_and_new_ones(dataset):
    user, sequence = users_to_ask(untrained_run(dataset, "finetune-all"))
    assert {0, 1, LENGTH} <= set((sequence != 0).sum(dim=1).tolist())
    assert ((user > dataset.num_users).sum(), user.max() > 2**60) == (8, True)

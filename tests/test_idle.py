import pytest

from finetune_kit.config import resolve_config
from finetune_kit.idle import idle_options


def told(**sections: dict[str, object]) -> list[str]:
    return list(idle_options(resolve_config(sections)))


def test_the_defaults_and_presets_have_nothing_to_tell():
    for preset in ("none", "paper", "authors"):
        for task in ("items", "label:gender"):
            assert told(run={"preset": preset, "task": task}) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"run": {"task": "label:gender"}, "finetune": {"loss": "bce"}},
            "finetune.loss = bce has no effect: labels are learned by cross-entropy",
        ),
        (
            {"run": {"task": "label:gender"}, "evaluation": {"protocols": "full"}},
            "evaluation.protocols = ['full'] has no effect: a profile label is told, nothing is ranked",
        ),
        (
            {"finetune": {"loss": "softmax", "num_negatives": 5}},
            "finetune.num_negatives = 5 has no effect: finetune.loss = softmax takes all items",
        ),
        (
            {"pretrain": {"num_negatives": 5}},
            "pretrain.num_negatives = 5 has no effect: pretrain.loss = softmax takes all items",
        ),
        (
            {"finetune": {"cache": "off", "cache_memory": 5}},
            "finetune.cache_memory = 5 has no effect: finetune.cache = off keeps nothing",
        ),
        (
            {"run": {"strategy": "spottune"}, "strategy": {"lambda_1": 0.5}},
            "strategy.lambda_1 = 0.5 has no effect: L_k and L_e join the loss only where strategy.k is set",
        ),
        *(
            (
                {"run": {"strategy": name}, "strategy": {"annealing_epochs": 5}},
                "strategy.annealing_epochs = 5 has no effect: the temperature stays, as strategy.final_temperature is "
                "not set",
            )
            for name in ("uaf-hard", "spottune", "skip")
        ),
    ],
)
def test_an_option_without_effect_is_told_with_the_reason(sections, words):
    assert told(**sections) == [words]


def test_an_option_with_an_effect_is_not_told():
    assert told(finetune={"loss": "bce", "num_negatives": 5}, evaluation={"num_candidates": 5}) == []
    assert told(pretrain={"loss": "sampled-softmax", "num_negatives": 5}) == []
    annealed = {"final_temperature": 1.0, "annealing_epochs": 5}
    assert told(run={"strategy": "spottune"}, strategy={"k": 1, "lambda_1": 0.5, **annealed}) == []

import pytest

from finetune_kit.comparison.plan import Comparison, plan_cells
from finetune_kit.errors import FinetuneKitError


def rows(comparison: Comparison) -> list[str]:
    """Return strategy, variant, backbone and fraction of each row in one text."""
    return list(dict.fromkeys(" ".join(map(str, cell.setting)).replace("  ", " ") for cell in plan_cells(comparison)))


def test_cells_are_rows_times_seeds():
    cells = plan_cells(Comparison(["finetune-cls", "uaf-hard"], seeds=[3, 1], fractions=[1.0, 0.5]))
    assert [(cell.setting.strategy, cell.setting.fraction, cell.seed) for cell in cells] == [
        (strategy, fraction, seed)
        for fraction in (1.0, 0.5)
        for strategy in ("finetune-cls", "uaf-hard")
        for seed in (3, 1)
    ]
    assert {(cell.config.run.strategy, cell.config.data.fraction, cell.config.run.seed) for cell in cells} == {
        (cell.setting.strategy, cell.setting.fraction, cell.seed) for cell in cells
    }


def test_several_values_make_rows_of_those_strategies_that_have_the_option():
    comparison = Comparison(["finetune-all", "uaf-hard"], sections={"strategy": {"policy": "conv, gru"}})
    assert rows(comparison) == [
        "finetune-all nextitnet 1.0",
        "uaf-hard strategy.policy=conv nextitnet 1.0",
        "uaf-hard strategy.policy=gru nextitnet 1.0",
    ]
    assert [cell.config.strategy.policy for cell in plan_cells(comparison)[3::3]] == ["conv", "gru"]


def test_one_value_sets_the_option_of_those_strategies_that_have_it():
    comparison = Comparison(["finetune-all", "uaf-hard"], sections={"strategy": {"temperature": "5"}})
    assert rows(comparison) == ["finetune-all nextitnet 1.0", "uaf-hard nextitnet 1.0"]
    assert plan_cells(comparison)[-1].config.strategy.temperature == 5


def test_options_of_sections_make_rows_of_all_strategies():
    sections = {"finetune": {"pooling": ["last", "mean"], "epochs": 7}}
    comparison = Comparison(["finetune-all", "finetune-cls"], seeds=[0], sections=sections)
    assert rows(comparison)[1] == "finetune-all finetune.pooling=mean nextitnet 1.0"
    assert [cell.config.finetune.pooling for cell in plan_cells(comparison)] == ["last", "mean"] * 2
    assert {cell.config.finetune.epochs for cell in plan_cells(comparison)} == {7}


def test_options_that_take_a_list_keep_their_commas():
    sections = {"evaluation": {"cutoffs": "5,10"}, "backbone": {"dilations": "1,2"}}
    cells = plan_cells(Comparison(["finetune-all"], seeds=[0], sections=sections))
    assert len(cells) == 1
    assert cells[0].config.evaluation.cutoffs == (5, 10)
    assert cells[0].config.backbone.dilations == (1, 2)


def test_what_all_rows_share_keeps_its_commas():
    (cell,) = plan_cells(Comparison(["finetune-all"], seeds=[0], sections={"run": {"data": "movies, small"}}))
    assert cell.config.run.data == "movies, small"


def test_every_row_tries_every_combination_of_tuned_values_with_every_seed():
    tune = {"finetune.learning_rate": ["1e-3", "1e-2"], "finetune.batch_size": ["8"]}
    cells = plan_cells(Comparison(["finetune-all", "uaf-hard"], seeds=[0, 1], tune=tune))
    assert len(cells) == 2 * 2 * 2
    assert [cell.tuned["finetune.learning_rate"] for cell in cells[:4]] == ["1e-3", "1e-3", "1e-2", "1e-2"]
    assert {(cell.config.finetune.learning_rate, cell.config.finetune.batch_size) for cell in cells} == {
        (0.001, 8),
        (0.01, 8),
    }


def folder(strategy: str = "uaf-hard", fingerprint: str = "abc", fraction: float = 0.1, **sections) -> str:
    """Return the name of a run's folder."""
    comparison = Comparison([strategy], seeds=[0], fractions=[fraction], sections=sections)
    return plan_cells(comparison)[0].folder(fingerprint)


def test_folder_names_stay_as_they_are_so_that_old_comparisons_go_on():
    name = folder(finetune={"epochs": 3})
    assert name == "uaf-hard-nextitnet-f0.1-s0-caa83696"


def test_equal_options_have_one_folder_and_others_another():
    same = folder()
    assert folder(finetune={"epochs": "100"}, run={"device": "cpu"}) == same  # the default, said; where it runs
    others = [
        folder(finetune={"epochs": 5}),
        folder(fingerprint="abd"),
        folder(fraction=1),
        folder("finetune-all"),
        folder(run={"precision": "bf16-mixed"}),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": []}, "strategies: none given; name at least one"),
        ({"strategies": ["uaf-hard", "uaf-hard"]}, "strategies: 'uaf-hard' is given twice; keep one"),
        ({"seeds": []}, "seeds: none given"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is given twice"),
        ({"seeds": [-1]}, "run.seed = -1"),
        ({"fractions": [1.0, 1.0]}, "fractions: 1.0 is given twice"),
        ({"fractions": [0.0]}, "data.fraction = 0.0: input should be greater than 0"),
        ({"backbones": ["nextitnt"]}, "no backbone named 'nextitnt'. Did you mean 'nextitnet'?"),
        ({"strategies": ["uaf-hrd"]}, "no strategy named 'uaf-hrd'. Did you mean 'uaf-hard'?"),
        ({"sections": {"data": {"fraction": 0.5}}}, "data.fraction is what is compared; give --fraction instead"),
        ({"sections": {"run": {"seed": 1}}}, "run.seed is what is compared; give --seeds instead"),
        (
            {"sections": {"strategy": {"polcy": "gru"}}},
            "no option strategy.polcy of 'uaf-hard', 'finetune-all'. Did you",
        ),
        ({"sections": {"strategy": {"policy": "conv,conv"}}}, "strategy.policy: 'conv' is given twice"),
        ({"sections": {"backbone": {"dims": 8}}}, "no option backbone.dims of 'nextitnet'. Did you mean 'dim'?"),
        ({"sections": {"finetune": {"lerning_rate": 1}}}, "no option finetune.lerning_rate. Did you mean"),
        ({"sections": {"fintune": {"epochs": 1}}}, "no section 'fintune'. Did you mean 'finetune'?"),
        (
            {"sections": {"data": {"split": ["user", "instance"]}}},
            "data.split=user,instance: all rows share the test",
        ),
        ({"sections": {"run": {"preset": ["paper", "none"]}}}, "all rows share the preset"),
        ({"sections": {"evaluation": {"cutoffs": "10"}}}, "have 5 among evaluation.cutoffs"),
        ({"tune": {"strategy.temperature": ["1"]}}, "'finetune-all' has no such option, so not every strategy would"),
        ({"tune": {"strategy.temprature": ["1"]}}, "Did you mean 'temperature'?"),
        ({"tune": {"finetune.learning_rate": []}}, "--tune finetune.learning_rate: no values"),
        ({"tune": {"finetune.learning_rate": ["1", "1"]}}, "finetune.learning_rate: '1' is given twice"),
        ({"tune": {"finetune.lerning_rate": ["1"]}}, "no option finetune.lerning_rate. Did you mean"),
        ({"tune": {"evaluation.batch_size": ["1"]}}, "all rows share the evaluation"),
        ({"tune": {"backbone.dilations": ["1"]}}, "that option is a list"),
        ({"tune": {"data.fraction": ["1"]}}, "data.fraction is what is compared"),
        ({"tune": {"learning_rate": ["1"]}}, "is not section.option"),
        (
            {"tune": {"finetune.epochs": ["1"]}, "sections": {"finetune": {"epochs": 2}}},
            "finetune.epochs is both set and tuned",
        ),
    ],
)
def test_what_can_t_be_compared_is_refused_in_one_line(arguments, message):
    with pytest.raises(FinetuneKitError) as caught:
        plan_cells(Comparison(**{"strategies": ["uaf-hard", "finetune-all"], **arguments}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_best_epoch_is_chosen_by_what_training_chooses_by():
    assert Comparison(["finetune-all"]).monitor == "mrr@5"
    assert Comparison(["finetune-all"], sections={"run": {"task": "label:kind"}}).monitor == "f1_macro"

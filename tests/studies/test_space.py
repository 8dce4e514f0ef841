import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_kit.errors import FinetuneKitError, OptionError
from finetune_kit.studies.plan import Sweep, SweepOptions
from finetune_kit.studies.space import combinations, read_space

UAF = {"run": {"strategy": "uaf-hard"}}


def dimension(path, text, sections=UAF):
    return read_space({path: text}, sections)[0]


def test_values_have_the_type_of_the_option_s_field():
    assert dimension("finetune.batch_size", "64,128").values == (64, 128)
    assert dimension("finetune.learning_rate", "1e-3,1").values == (0.001, 1.0)
    assert dimension("finetune.optimizer", "adam,lazy-adam").values == ("adam", "lazy-adam")
    assert dimension("backbone.mask_padding", "true,false").values == (True, False)
    assert dimension("finetune.batch_size", [64, 128]).values == (64, 128)


def test_a_range_has_the_type_of_the_option_s_field():
    rate = dimension("finetune.learning_rate", "1e-4:1e-2:log")
    assert (rate.low, rate.high, rate.is_log) == (1e-4, 1e-2, True)
    size = dimension("finetune.batch_size", "64:256")
    assert (size.low, size.high, size.is_log) == (64, 256, False)
    assert isinstance(size.low, int)
    assert isinstance(dimension("strategy.temperature", "1:20").low, float)


def test_a_range_with_a_step_has_round_values():
    assert dimension("finetune.weight_decay", "0:0.3:0.1").values == (0.0, 0.1, 0.2, 0.3)
    assert dimension("finetune.batch_size", "64:200:64").values == (64, 128, 192)


@given(low=st.integers(1, 50), width=st.integers(1, 50), step=st.integers(1, 50))
def test_a_step_stays_between_the_ends(low, width, step):
    text = f"{low}:{low + width}:{step}"
    if step > width:
        with pytest.raises(OptionError, match="give another step"):
            dimension("finetune.batch_size", text)
    else:
        assert dimension("finetune.batch_size", text).values == tuple(range(low, low + width + 1, step))


def test_an_option_of_the_policy_is_searched():
    found = dimension("strategy.policy_options.dim", "8,16")
    assert found.values == (8, 16)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("finetune.lerning_rate", "1,2", "Did you mean 'learning_rate'"),
        ("finetun.learning_rate", "1,2", "Did you mean 'finetune'"),
        ("strategy.temprature", "1:2", "Did you mean 'temperature'"),
        ("finetune.learning_rate", "0:1", "greater than 0"),
        ("finetune.batch_size", "1.5:3", "valid integer"),
        ("finetune.optimizer", "adam,sgd", "'adam' or 'lazy-adam'"),
        ("finetune.learning_rate", "0.1", "one value is no search"),
        ("finetune.batch_size", "64,128,64", "64 is given twice"),
        ("finetune.learning_rate", "1:0.1", "1 is not below 0.1"),
        ("finetune.weight_decay", "0:1:log", "log needs numbers above 0"),
        ("finetune.batch_size", "1:9:lin", "'lin' is neither log nor a step"),
        ("finetune.batch_size", "1:9:2:3", "is no range"),
        ("run.seed", "0,1", "`ftkit compare`"),
        ("evaluation.cutoffs", "5,10", "all trials share the evaluation"),
        ("backbone.dilations", "1,4", "is a list"),
        ("learning_rate", "1:2", "no section.option"),
    ],
)
def test_what_can_not_be_searched_is_told(path, text, said):
    with pytest.raises(FinetuneKitError, match=said):
        dimension(path, text)


def test_what_is_set_is_not_searched():
    with pytest.raises(OptionError, match="both set and searched"):
        dimension("finetune.epochs", "1,2", {**UAF, "finetune": {"epochs": 3}})


def test_a_grid_has_all_combinations_the_last_option_changing_fastest():
    space = read_space({"finetune.batch_size": "64,128", "strategy.temperature": "1:2:1"}, UAF)
    assert [tuple(values.values()) for values in combinations(space)] == [(64, 1.0), (64, 2.0), (128, 1.0), (128, 2.0)]


def asked(**options):
    return Sweep(UAF, SweepOptions(**{"search": {"finetune.learning_rate": "1e-4:1e-2:log"}, **options}))


def test_a_grid_needs_values_and_draws_a_number():
    with pytest.raises(OptionError, match="a grid needs values"):
        asked()
    with pytest.raises(OptionError, match="how many"):
        asked(sampler="random")
    with pytest.raises(OptionError, match="leave --trials out"):
        asked(sampler="grid", trials=3)
    assert asked(trials=3).sampler == "tpe"


def test_what_does_not_go_together_in_a_grid_is_refused_before_it_trains():
    search = {"finetune.optimizer": "adam,lazy-adam", "finetune.weight_decay": "0,0.1"}
    with pytest.raises(OptionError, match="lazy-adam"):
        asked(search=search)

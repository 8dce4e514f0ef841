import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from documents import ROOT
from finetune_kit.cli.sections import SECTIONS as LISTED
from finetune_kit.config import SECTIONS, deciding_options, differences, read_toml, resolve_config, to_toml
from finetune_kit.errors import OptionError, UnknownNameError
from finetune_kit.foreign import tomllib
from finetune_kit.options import parse_assignments

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
VALUES = st.recursive(
    TEXT | NUMBERS | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


def through_toml(tables):
    return tomllib.loads(to_toml(tables))


@given(st.dictionaries(TEXT, st.dictionaries(TEXT, VALUES, max_size=4), max_size=3))
def test_tables_of_plain_values_survive_toml(tables):
    assert through_toml(tables) == tables


def test_none_is_left_out_of_toml_and_takes_the_default_again():
    assert through_toml({"a": {"b": None, "c": {"d": None, "e": 1}}}) == {"a": {"c": {"e": 1}}}


def test_without_anything_given_every_section_has_its_defaults():
    config = resolve_config({})
    assert tuple(config.tables()) == SECTIONS
    assert (config.run.strategy, config.run.backbone, config.run.data) == (
        "finetune-all",
        "nextitnet",
        "synthetic",
    )
    assert config.reader == {}


def test_text_and_typed_values_resolve_alike():
    typed = {
        "finetune": {"epochs": 3},
        "evaluation": {"cutoffs": [1, 5]},
        "backbone": {"mask_padding": False},
    }
    text = {
        "finetune": {"epochs": "3"},
        "evaluation": {"cutoffs": "1,5"},
        "backbone": {"mask_padding": "false"},
    }
    assert resolve_config(typed) == resolve_config(text)


def test_a_resolved_configuration_resolves_to_itself_through_toml(tmp_path):
    given_sections = {
        "run": {"strategy": "finetune-last2", "seed": 7},
        "data": {"users": "100", "max_length": "10"},
        "finetune": {"learning_rate": 1e-7},
    }
    config = resolve_config(given_sections)
    path = tmp_path / "config.toml"
    path.write_text(to_toml({**config.tables(), "versions": {"torch": "1"}, "git": {}, "files": {}}), encoding="utf-8")
    again = resolve_config(read_toml(path))
    assert again.tables().keys() == config.tables().keys()
    assert again.strategy == config.strategy
    assert again.finetune == config.finetune
    assert again.reader == {"users": 100}


def test_a_component_s_preset_can_be_overridden():
    assert resolve_config({"run": {"strategy": "finetune-last2"}}).strategy.n == 2
    assert resolve_config({"run": {"strategy": "finetune-last2"}, "strategy": {"n": 3}}).strategy.n == 3


def test_the_data_section_is_split_between_use_and_reader():
    config = resolve_config({"data": {"users": "50", "fraction": "0.5"}})
    assert config.data.fraction == 0.5
    assert config.reader == {"users": 50}
    assert config.tables()["data"]["users"] == 50


def test_a_folder_takes_no_reader_s_options(tmp_path):
    with pytest.raises(
        OptionError, match=r"no option data\.users.* Options of data: max_length, split, fraction, unseen$"
    ):
        resolve_config({"run": {"data": str(tmp_path)}, "data": {"users": "50"}})


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        (
            {"strategi": {}},
            OptionError,
            "no section 'strategi'. Did you mean 'strategy'? Sections: run, data",
        ),
        ({"run": {"strategy": "peterec"}}, UnknownNameError, "no strategy named 'peterec'."),
        (
            {"run": {"backbone": "nextit"}},
            UnknownNameError,
            "no backbone named 'nextit'. Did you mean 'nextitnet'?",
        ),
        ({"run": {"trackers": "jsnl"}}, UnknownNameError, "no tracker named 'jsnl'. Did you mean 'jsonl'?"),
        ({"run": {"seed": -1}}, OptionError, "run.seed = -1: input should be greater than or equal to 0"),
        (
            {"finetune": {"lerning_rate": 1}},
            OptionError,
            "no option finetune.lerning_rate. Did you mean 'learning_rate'?",
        ),
        ({"data": {"usrs": 1}}, OptionError, "no option data.usrs. Did you mean 'users'?"),
        ({"evaluation": {"cutoffs": ""}}, OptionError, "evaluation.cutoffs"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(sections, error, message):
    with pytest.raises(error) as caught:
        resolve_config(sections)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_configuration_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"no configuration file '.*nowhere\.toml'"):
        read_toml(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(OptionError, match=r"broken\.toml: not TOML"):
        read_toml(broken)


def test_a_configuration_file_with_options_outside_of_sections_is_refused(tmp_path):
    path = tmp_path / "flat.toml"
    path.write_text('strategy = "uaf-hard"\n')
    with pytest.raises(OptionError, match="strategy"):
        resolve_config(read_toml(path))


def test_the_sections_that_ftkit_options_lists_are_those_of_a_configuration():
    assert tuple(LISTED) == SECTIONS


def test_numbers_keep_every_digit_in_toml():
    assert through_toml({"a": {"b": math.pi, "c": 1e22, "d": 2**63 - 1}}) == {
        "a": {"b": math.pi, "c": 1e22, "d": 2**63 - 1}
    }


def test_the_papers_preset_has_its_sizes_and_what_is_given_comes_first():
    config = resolve_config({"run": {"strategy": "uaf-hard", "preset": "paper"}, "finetune": {"learning_rate": "0.01"}})
    assert (config.backbone.dim, config.backbone.num_blocks) == (128, 8)
    assert (config.pretrain.learning_rate, config.pretrain.batch_size) == (1e-4, 256)
    assert (config.finetune.learning_rate, config.finetune.batch_size) == (0.01, 256)
    assert config.finetune.batching == "instances"
    assert config.strategy == resolve_config({"run": {"strategy": "uaf-hard"}}).strategy


AUTHORS = {
    "backbone": {"dim": 128, "num_blocks": 8, "mask_padding": False},
    "pretrain": {"learning_rate": 1e-4, "batch_size": 256, "windows": "latest"},
    "finetune": {
        "learning_rate": 1e-4,
        "batch_size": 256,
        "batching": "instances",
        "loss": "bce",
        "pooling": "mean",
    },
    "data": {"split": "authors"},
    "evaluation": {"protocols": ["sampled", "full"]},
}
UAF_AUTHORS = {
    "uaf-hard": {"logits": "sigmoid", "evaluation": "sample", "policy_options": {"mask_padding": False}},
    "uaf-soft": {"policy_options": {"mask_padding": False}},
    "uaf-rl": {"reward": "authors", "policy_options": {"mask_padding": False}},
}
"""What the authors' code does where it differs from our defaults; nothing else may differ from them."""


@pytest.mark.parametrize("strategy", UAF_AUTHORS)
def test_the_authors_preset_switches_every_point_in_which_their_code_differs(strategy):
    ours, theirs = (resolve_config({"run": {"strategy": strategy, "preset": preset}}) for preset in ("none", "authors"))
    points = {**AUTHORS, "strategy": UAF_AUTHORS[strategy]}
    for section, options in ours.tables().items():
        if section != "run":
            assert theirs.tables()[section] == {**options, **points.get(section, {})}


@pytest.mark.parametrize(("strategy", "not_its_own"), [("uaf-hard", {"reward"}), ("uaf-rl", {"logits", "evaluation"})])
def test_the_options_that_the_documentation_has_for_the_authors_code_are_their_preset(strategy, not_its_own):
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").partition("| what | default | paper |")[2]
    options = [row.split("|")[-2] for row in text.partition("\n\n")[0].splitlines()[2:]]
    written = [given for cell in options for given in re.findall(r"`([\w.]+=[^`…]+)`", cell.partition(";")[0])]
    points = parse_assignments(list(dict.fromkeys(written)))
    points["strategy"] = {name: value for name, value in points["strategy"].items() if name not in not_its_own}
    assert points["strategy"]["policy_options"] == {"mask_padding": "false"}
    points["strategy"]["policy_options"] = {"mask_padding": False}
    points["pretrain"].setdefault("batch_size", 256)  # "a batch" in the table, without its option
    documented = resolve_config({"run": {"strategy": strategy}, **points}).tables()
    preset = resolve_config({"run": {"strategy": strategy, "preset": "authors"}}).tables()
    assert {**documented, "run": {}} == {**preset, "run": {}}


def test_a_preset_knows_which_policy_it_is_for():
    sections = {"run": {"strategy": "uaf-soft", "preset": "authors"}, "strategy": {"policy": "gru"}}
    assert resolve_config(sections).strategy.policy_options == {}


def test_a_recorded_preset_changes_nothing_when_the_configuration_is_read_again(tmp_path):
    config = resolve_config({"run": {"strategy": "uaf-hard", "preset": "authors"}, "finetune": {"pooling": "last"}})
    (tmp_path / "config.toml").write_text(to_toml(config.tables()))
    assert resolve_config(read_toml(tmp_path / "config.toml")).tables() == config.tables()


def test_what_decides_a_run_is_the_same_before_and_after_it_was_written(tmp_path):
    sections = {"run": {"strategy": "uaf-hard", "trackers": []}, "finetune": {"learning_rate": "0.01"}}
    made = resolve_config(sections)
    (tmp_path / "config.toml").write_text(to_toml(made.tables()))
    was = deciding_options(read_toml(tmp_path / "config.toml"))
    assert differences(was, deciding_options(made.tables())) == ""
    assert "run.trackers" not in was
    other = resolve_config({**sections, "strategy": {"final_temperature": 1}, "data": {"split": "user"}})
    assert differences(was, deciding_options(other.tables())) == (
        "data.split was 'instance', now 'user'; strategy.final_temperature was not there, now 1.0"
    )

from typing import Any, Literal

import pytest
from pydantic import Field

from finetune_kit.errors import OptionError
from finetune_kit.options import Options, describe, parse_assignments, resolve
from finetune_kit.plugins import KINDS, installed
from finetune_kit.sections import DataOptions, EvaluationOptions, FinetuneOptions, PretrainOptions, RunOptions


class Inner(Options):
    depth: int = Field(2, ge=1)
    """How deep."""


class Example(Options):
    temperature: float = Field(10.0, gt=0)
    """How even
    the gradient is."""
    kind: Literal["hard", "soft"] = "hard"
    """Which."""
    cutoffs: tuple[int, ...] = (5, 10)
    """Where to cut."""
    limit: int | None = None
    """How many at most."""
    share: float = Field(0.5, ge=0, le=1)
    """Of all."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Anything."""
    inner: Inner = Inner()
    """Options in options."""


class Needs(Options):
    path: str
    """Where."""


def test_an_unknown_option_names_the_closest_and_all():
    with pytest.raises(OptionError) as caught:
        resolve(Example, {"temperatur": 3}, "strategy")
    assert str(caught.value).startswith(
        "no option strategy.temperatur. Did you mean 'temperature'? Options of strategy: temperature, kind"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": "0"}, "strategy.temperature = '0': input should be greater than 0"),
        ({"temperature": "nan"}, "strategy.temperature = 'nan': input should be a finite number"),
        ({"kind": "firm"}, "strategy.kind = 'firm': input should be 'hard' or 'soft'"),
        ({"share": 2}, "strategy.share = 2: input should be less than or equal to 1"),
        ({"cutoffs": "5,x"}, "strategy.cutoffs = 'x': input should be a valid integer"),
        ({"inner": {"depth": 0}}, "strategy.inner.depth = 0: input should be greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_named_in_one_line(given, message):
    with pytest.raises(OptionError) as caught:
        resolve(Example, given, "strategy")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_required_option_says_how_to_set_it():
    with pytest.raises(OptionError, match=r"option data\.path is required; set it with --set data\.path=VALUE"):
        resolve(Needs, {}, "data")


def test_text_as_typed_on_a_command_line_becomes_typed_values():
    options = resolve(Example, {"cutoffs": "1, 20,", "temperature": "5", "limit": "3"}, "strategy")
    assert options == Example(cutoffs=(1, 20), temperature=5.0, limit=3)


def test_options_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Example().kind = "soft"


def test_describe_shows_types_bounds_defaults_and_descriptions():
    rows = {row.name: row[1:] for row in describe(Example, {"kind": "soft"})}
    assert rows == {
        "temperature": ("float in (0, ∞)", "10.0", "How even the gradient is."),
        "kind": ("hard|soft", "soft", "Which."),
        "cutoffs": ("int,…", "5,10", "Where to cut."),
        "limit": ("int|none", "none", "How many at most."),
        "share": ("float in [0, 1]", "0.5", "Of all."),
        "extra": ("NAME=VALUE", "none", "Anything."),
        "inner.depth": ("int in [1, ∞)", "2", "How deep."),
    }
    assert describe(Needs)[0].default == "(required)"
    assert describe(Options) == []


def test_assignments_nest_by_their_dots():
    assert parse_assignments(
        ["strategy.temperature = 5", "strategy.policy_options.mask_padding=false", "data.x=a=b"]
    ) == {
        "strategy": {"temperature": "5", "policy_options": {"mask_padding": "false"}},
        "data": {"x": "a=b"},
    }


@pytest.mark.parametrize("text", ["temperature=5", "strategy.temperature", ".x=1", "strategy.=1", "a..b=1", "=", ""])
def test_an_assignment_of_another_form_shows_what_is_right(text):
    with pytest.raises(OptionError, match=r"is not section\.option=value, e\.g\. --set strategy\.temperature=5"):
        parse_assignments([text])


@pytest.mark.parametrize(
    "assignments",
    [["a.b=1", "a.b=2"], ["a.b=1", "a.b.c=2"], ["a.b.c=2", "a.b=1"]],
)
def test_an_option_set_twice_is_refused(assignments):
    with pytest.raises(OptionError, match="twice"):
        parse_assignments(assignments)


COMPONENTS = [(kind, name) for kind in KINDS for name in installed().components(kind)]
SECTIONS = [RunOptions, DataOptions, PretrainOptions, FinetuneOptions, EvaluationOptions]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_option_of_every_installed_component_is_described(kind, name):
    component = installed().component(kind, name)
    for row in describe(getattr(component.load(), "Options", Options), component.preset):
        assert row.description.endswith("."), f"{name}: {row.name} has no description, or one without a full stop"
        assert row.type != "value", f"{name}: {row.name} has a type that can't be shown"


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_option_of_every_section_is_described(model):
    for row in describe(model):
        assert row.description.endswith("."), f"{row.name} has no description, or one without a full stop"
        assert row.type != "value", f"{row.name} has a type that can't be shown"

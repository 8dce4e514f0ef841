"""Options: typed, documented under each field, unknown keys refused.

Every strategy, backbone, policy, dataset reader and stage of training has a model that derives from
`Options`. The docstring under a field is its help text wherever options are shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from finetune_kit.errors import OptionError, did_you_mean


class Options(BaseModel):
    """Base of every options model: frozen, unknown keys refused, fields documented by docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: Any) -> Any:
        """Let ``--set evaluation.cutoffs=5,10`` stand for a list."""
        if not isinstance(values, Mapping):
            return values
        return {
            key: [part.strip() for part in value.split(",") if part.strip()]
            if isinstance(value, str) and _is_list(cls, key)
            else value
            for key, value in values.items()
        }


def _is_list(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and str(field.annotation).startswith(("tuple", "list"))


OptionsT = TypeVar("OptionsT", bound=Options)


def resolve(model: type[OptionsT], values: Mapping[str, Any], section: str) -> OptionsT:
    """Return the options model filled with ``values``.

    Args:
        model: The options model.
        values: Option name to value; values may be text, as typed on a command line.
        section: Where the options live, e.g. ``"strategy"``; named in errors.

    Raises:
        OptionError: For a key that the model does not have or a value that does not fit, in one line.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise OptionError(_one_line(error, model, section)) from None


def _one_line(error: ValidationError, model: type[BaseModel], section: str) -> str:
    """Return pydantic's first complaint as one line: the option, the value and what would be right."""
    first = error.errors()[0]
    name = ".".join(part for part in first["loc"] if isinstance(part, str))  # not the place within a list
    if first["type"] == "extra_forbidden":
        known = list(model.model_fields)
        have = ", ".join(known) or "none"
        return f"no option {section}.{name}.{did_you_mean(name, known)} Options of {section}: {have}"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "too_short":
        reason = f"needs at least {first['ctx']['min_length']}"
    reason = reason[0].lower() + reason[1:]
    if not name:  # a check over several options: its message stands by itself
        return f"{section}: {reason}"
    if first["type"] == "missing":
        return f"option {section}.{name} is required; set it with --set {section}.{name}=VALUE"
    return f"{section}.{name} = {first['input']!r}: {reason}"


class Described(NamedTuple):
    """One option, as `ftkit … show NAME` prints it."""

    name: str
    type: str
    default: str
    description: str


def describe(model: type[Options], preset: Mapping[str, Any] | None = None) -> list[Described]:
    """Return one row per option of a model, a preset's defaults in place; options within options dotted."""
    preset = preset or {}
    rows = []
    properties = model.model_json_schema().get("properties", {})
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            inner = describe(field.annotation, preset.get(name))
            rows += [row._replace(name=f"{name}.{row.name}") for row in inner]
            continue
        default = preset.get(
            name, "(required)" if field.is_required() else field.get_default(call_default_factory=True)
        )
        description = " ".join((field.description or "").split())
        rows.append(Described(name, _type_text(properties[name]), _value_text(default), description))
    return rows


def _type_text(schema: Mapping[str, Any]) -> str:
    """Return a field's type and bounds in words a user can type, from its JSON schema."""
    if "enum" in schema:
        return "|".join(str(choice) for choice in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return "|".join(_type_text(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"{_type_text(schema.get('items', {}))},…"
    words = {
        "integer": "int",
        "number": "float",
        "string": "text",
        "boolean": "true|false",
        "null": "none",
        "object": "NAME=VALUE",
    }
    text = words.get(schema.get("type", ""), "value")
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None and high is None:
        return text
    left = ("(" if "exclusiveMinimum" in schema else "[") + ("-∞" if low is None else f"{low:g}")
    right = ("∞" if high is None else f"{high:g}") + (")" if "exclusiveMaximum" in schema or high is None else "]")
    return f"{text} in {left}, {right}"


def _value_text(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, tuple | list):
        return ",".join(_value_text(part) for part in value)
    return json.dumps(value, ensure_ascii=False)


def parse_assignments(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Return ``{section: {option: text}}`` for ``["strategy.temperature=5", …]``; deeper paths nest deeper.

    Raises:
        OptionError: For text that is not ``section.option=value``, or an option set twice.
    """
    sections: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        *parents, option = path.strip().split(".")
        if not equals or not parents or not all(parents) or not option:
            raise OptionError(f"--set {assignment!r} is not section.option=value, e.g. --set strategy.temperature=5")
        place: dict[str, Any] = sections
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or option in place:
            raise OptionError(f"--set {path.strip()} is given twice; keep one")
        place[option] = value.strip()
    return sections

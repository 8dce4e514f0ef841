"""A run's configuration: names and one options model per section, all resolved before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_kit import __version__
from finetune_kit.data.remote import is_address, without_secrets
from finetune_kit.environment import written_by
from finetune_kit.errors import CheckpointError, FinetuneKitError, OptionError, did_you_mean, one_line
from finetune_kit.foreign import read_toml as parse_toml
from finetune_kit.options import Options, resolve
from finetune_kit.plugins import installed
from finetune_kit.presets import PRESETS
from finetune_kit.sections import DataOptions, EvaluationOptions, FinetuneOptions, PretrainOptions, RunOptions, label_of

SECTIONS = ("run", "data", "backbone", "pretrain", "finetune", "evaluation", "strategy")
RECORDED = ("versions", "git", "files")
"""Sections that a run writes for the record; they are passed over when a run's config is used again."""

MAY_CHANGE = (
    "run.data",
    "run.preset",
    "run.devices",
    "run.trackers",
    "run.save_minutes",
    "finetune.cache_memory",
)
"""Options with which a run may be gone on with that it was not begun with: they don't touch its numbers.

``run.devices`` touches them by rounding, and where there is dropout by other noise.

What ``run.data`` names is told by the dataset's fingerprint, and what ``run.preset`` sets by the options that it sets.
"""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, resolved.

    Args:
        run: Names, seed, device.
        data: How the dataset is used.
        reader: Options of a dataset that prepares itself, as given.
        backbone: Options of the backbone.
        pretrain: Options of pre-training.
        finetune: Options of fine-tuning.
        evaluation: Options of evaluation.
        strategy: Options of the strategy.
    """

    run: RunOptions
    data: DataOptions
    reader: Mapping[str, Any]
    backbone: Options
    pretrain: PretrainOptions
    finetune: FinetuneOptions
    evaluation: EvaluationOptions
    strategy: Options

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the sections as plain values, as ``config.toml`` has them: addresses in them without secrets."""
        tables = {name: getattr(self, name).model_dump(mode="json") for name in SECTIONS}
        tables["data"] |= {
            key: without_secrets(value) if isinstance(value, str) and is_address(value) else value
            for key, value in self.reader.items()
        }
        return tables


def resolve_config(sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the configuration that sections of (text or typed) values ask for.

    Args:
        sections: Section name to options; missing ones take the defaults.

    Raises:
        OptionError: For an unknown section or option, or a value that does not fit.
        UnknownNameError: For a strategy, backbone or tracker that is not installed.
    """
    for section in sections:
        if section not in (*SECTIONS, *RECORDED):
            raise OptionError(
                f"no section {section!r}.{did_you_mean(section, SECTIONS)} Sections: {', '.join(SECTIONS)}"
            )
    given = {name: dict(sections.get(name, {})) for name in SECTIONS}
    run = resolve(RunOptions, given["run"], "run")
    label_of(run.task)  # refuses what is no task
    for name, options in PRESETS[run.preset].items():
        given[name] = {**options, **given[name]}
    for tracker in run.trackers:
        installed().component("tracker", tracker)
    data, reader = _split_data_section(given["data"], run.data)
    return Config(
        run=run,
        data=data,
        reader=reader,
        backbone=_component_options("backbone", run.backbone, run.preset, given["backbone"]),
        pretrain=resolve(PretrainOptions, given["pretrain"], "pretrain"),
        finetune=resolve(FinetuneOptions, given["finetune"], "finetune"),
        evaluation=resolve(EvaluationOptions, given["evaluation"], "evaluation"),
        strategy=_component_options("strategy", run.strategy, run.preset, given["strategy"]),
    )


def _component_options(kind: str, name: str, preset: str, values: Mapping[str, Any]) -> Options:
    component = installed().component(kind, name)
    model = component.load().Options
    options = resolve(model, {**component.preset, **component.variants.get(preset, {}), **values}, kind)
    if not {"policy", "policy_options"} <= model.model_fields.keys():
        return options
    # by convention a strategy's policy; the policy has its own part of a preset
    variant = installed().component("policy", options.policy).variants.get(preset, {})  # pyrefly: ignore[missing-attribute]
    return options.model_copy(update={"policy_options": {**variant, **options.policy_options}})  # pyrefly: ignore[missing-attribute]


def _split_data_section(values: Mapping[str, Any], data: str) -> tuple[DataOptions, dict[str, Any]]:
    """Tell options of using a dataset from those of preparing it; only a dataset given by name takes them."""
    own = {key: value for key, value in values.items() if key in DataOptions.model_fields}
    reader = {key: value for key, value in values.items() if key not in own}
    if reader:
        readers = installed().components("dataset")
        fields = readers[data].load().Options.model_fields if data in readers and not Path(data).is_dir() else {}
        for key in reader:
            if key not in fields:
                known = [*DataOptions.model_fields, *fields]
                raise OptionError(
                    f"no option data.{key}.{did_you_mean(key, known)} Options of data: {', '.join(known)}"
                )
        typed = resolve(readers[data].load().Options, {**readers[data].preset, **reader}, "data")
        dumped = {key: value for key, value in typed.model_dump(mode="json").items() if key in reader}
        texts = {key: value for key, value in typed if isinstance(value, str) and key in reader}
        reader = dumped | texts  # a dumped address lacks what opens it
    return resolve(DataOptions, own, "data"), reader


def read_toml(path: Path) -> dict[str, dict[str, Any]]:
    """Return the sections of a configuration file.

    Raises:
        OptionError: For a file that is not there, is no TOML, or has options outside of sections.
    """
    try:
        sections = parse_toml(path)
    except OSError as error:
        raise OptionError(f"no configuration file {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not even UTF-8
        raise OptionError(f"{path}: not TOML: {one_line(error)}") from None
    for name, table in sections.items():
        if not isinstance(table, dict):
            raise OptionError(f"{path}: the option {name!r} stands outside of a section; put it below one, e.g. [run]")
    return sections


def read_run(folder: Path, needed: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the sections of the ``config.toml`` of a run or a pre-trained backbone.

    Args:
        folder: Where it stands.
        needed: Sections that must be there; `SECTIONS` for a run.

    Raises:
        OptionError: When it is not there, or no TOML.
        CheckpointError: When a section is missing, or this version does not know an option or a name in it.
    """
    path = folder / "config.toml"
    sections = read_toml(path)
    keys = {"run": {"data", "backbone"}, "files": {"dataset", "dataset_fingerprint"}}
    lacking = [f"[{name}]" for name in needed if name not in sections]
    lacking += [f"{name}.{key}" for name, own in keys.items() for key in sorted(own - {*sections.get(name, {})})]
    if lacking:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(lacking)}; copy or make the folder again")
    run = dict(sections["run"])
    if "finetune" not in sections:  # a pre-trained backbone is used without what it was made by and for
        run = {name: value for name, value in run.items() if name not in ("strategy", "trackers")}
    try:
        resolve_config({**sections, "run": run})
    except FinetuneKitError as error:
        writer = sections.get("versions", {}).get("finetune-kit")
        raise CheckpointError(f"{path}: {error}{'' if writer == __version__ else f'; {written_by(writer)}'}") from None
    return sections


def deciding_options(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what decides a run's numbers, ``"section.option"`` to a plain value, as TOML would give it back.

    Args:
        tables: Section to options, as `Config.tables` or a ``config.toml`` have them.
    """
    plain = {name: _plain(table) for name, table in tables.items() if name in SECTIONS}
    options = {f"{name}.{key}": value for name, table in plain.items() for key, value in table.items()}
    return {path: value for path, value in options.items() if path not in MAY_CHANGE}


def _plain(value: Any) -> Any:
    """Return a value as TOML gives it back: without what is None, and with lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two mappings of plain values, e.g. ``"a was 1, now 2; b was 3, now not there"``."""
    return "; ".join(
        f"{name} was {_shown(was, name)}, now {_shown(now, name)}"
        for name in dict.fromkeys((*was, *now))
        if (name in was, was.get(name)) != (name in now, now.get(name))
    )


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not there"
    value = values[name]
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:12] if is_hash else repr(value)


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return tables of plain values as TOML; None values are left out, as TOML has none."""
    parts = []
    for name, table in tables.items():
        lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items() if value is not None]
        parts.append("\n".join([f"[{_toml_key(name)}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _toml_text(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(key)} = {_toml_value(part)}" for key, part in value.items() if part is not None)
        return "{" + inner + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(part) for part in value) + "]"
    return _toml_text(value) if isinstance(value, str) else json.dumps(value)  # TOML's numbers and booleans are JSON's


def _toml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets DEL stand, TOML does not

"""``comparison.json``: the plan of a comparison on disk, from which its results can be read again at any time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from finetune_kit.comparison.control import collapse_notes, control_notes
from finetune_kit.comparison.provenance import base_notes, code_notes
from finetune_kit.comparison.results import Result, Results, Setting, row_name
from finetune_kit.comparison.summary import lost_to_references, of_seeds
from finetune_kit.config import MAY_CHANGE, differences
from finetune_kit.errors import CheckpointError, OptionError, one_line
from finetune_kit.files import write_json
from finetune_kit.foreign import confined, read_json, refuse_name
from finetune_kit.presence import FOLDER as AT_WORK

FILE = "comparison.json"
MISSING = "missing: "
"""What a note on a run that is not there begins with."""


@dataclass(frozen=True)
class Planned:
    """One run that belongs to a comparison, there or not.

    Args:
        setting: Its row.
        tuned: What this configuration tries, by option.
        seed: Its seed.
        folder: Its folder, relative to the comparison's.
        failure: Why it could not be made, when last tried; empty if it was not tried or is there.
    """

    setting: Setting
    tuned: Mapping[str, Any]
    seed: int
    folder: str
    failure: str = ""


@dataclass(frozen=True)
class Record:
    """A comparison's plan, as ``comparison.json`` has it.

    Args:
        dataset: The dataset's name.
        dataset_fingerprint: Its content.
        task: ``"items"`` or ``"label:NAME"``.
        monitor: The validation metric that chooses among tuned configurations.
        budget: What tuning every row got, in one line.
        options: Section to options as they were asked for.
        tune: Option to the values tried.
        runs: All runs.
        notes: Other lines for the reader.
    """

    dataset: str
    dataset_fingerprint: str
    task: str
    monitor: str
    budget: str
    options: Mapping[str, Mapping[str, Any]]
    tune: Mapping[str, Any]
    runs: tuple[Planned, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def write(self, folder: Path) -> None:
        """Write ``comparison.json``."""
        runs = [{**asdict(run), "setting": run.setting._asdict()} for run in self.runs]
        write_json(folder / FILE, {**asdict(self), "runs": runs})

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Return what ``comparison.json`` says.

        Raises:
            CheckpointError: When there is none, it is damaged, or it names a run that is not in the folder.
        """
        path = folder / FILE
        if not path.exists():
            raise CheckpointError(f"{str(folder)!r} is no comparison: there is no {FILE}; `ftkit compare` makes one")
        try:
            content: dict[str, Any] = read_json(path)
            for run in content["runs"]:
                run["setting"] = Setting(**run["setting"])
                _refuse_escape(folder, run["folder"])
            content["runs"] = tuple(Planned(**run) for run in content["runs"])
            content["notes"] = tuple(content["notes"])
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {one_line(error)}; the same command writes it again") from error


def _refuse_escape(folder: Path, name: str) -> None:
    """Raise ``ValueError`` for a run's folder that is not below the comparison's; ``runs`` itself may be a link."""
    place, _, rest = name.partition("/")
    refuse_name(place)
    confined(folder / place if rest else folder, rest or place)


def refuse_foreign(folder: Path) -> None:
    """Raise if a comparison can't go to a folder: it is a file, or holds something else than a comparison or runs."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise OptionError(
                f"--output {str(folder)!r}: {str(path)!r} is a file where a folder is expected; name another"
            )
    if (
        folder.exists()
        and not (folder / FILE).exists()
        and {path.name for path in folder.iterdir()} - {"runs", AT_WORK}
    ):
        raise OptionError(f"--output {str(folder)!r} is not empty: it is no comparison; name another folder")


def refuse_other_data(folder: Path, fingerprint: str) -> None:
    """Raise if a comparison in the folder is on another dataset than the one with this fingerprint."""
    if not (folder / FILE).exists():
        return
    if (was := Record.read(folder).dataset_fingerprint) != fingerprint:
        raise OptionError(
            f"{str(folder)!r} compares on a dataset with fingerprint {was[:12]}; the one given has {fingerprint[:12]}; "
            "name another --output"
        )


def refuse_other_plan(folder: Path, now: Record) -> None:
    """Raise if what a folder compares is not what is asked for, when it is to be gone on with and no more.

    Raises:
        OptionError: Naming every difference.
    """
    if not (folder / FILE).exists():
        return
    if told := differences(_asked(Record.read(folder)), _asked(now)):
        raise OptionError(
            f"{str(folder)!r} holds a comparison with other options: {told}; give those, or leave --resume out to "
            "compare this too"
        )


def _asked(record: Record) -> dict[str, Any]:
    """Return what was asked for, by the names of the command line."""
    settings = [run.setting for run in record.runs]
    return {
        "strategies": list(dict.fromkeys(setting.strategy for setting in settings)),
        "seeds": sorted({run.seed for run in record.runs}),
        "backbones": list(dict.fromkeys(setting.backbone for setting in settings)),
        "fractions": list(dict.fromkeys(setting.fraction for setting in settings)),
        "task": record.task,
        **{f"tune {path}": list(map(str, values)) for path, values in record.tune.items()},
        **{
            f"{section}.{option}": str(value)
            for section, options in record.options.items()
            for option, value in options.items()
            if f"{section}.{option}" not in MAY_CHANGE
        },
    }


def read_results(folder: Path) -> Results:
    """Return the finished runs of a comparison, of each row those of the configuration that validation chose.

    Raises:
        CheckpointError: When the folder holds no comparison, or no run of it is finished.
    """
    record = Record.read(folder)
    there = [run for run in record.runs if (folder / run.folder / "metrics.json").exists()]
    if not there:
        reasons = "; ".join(dict.fromkeys(run.failure for run in record.runs if run.failure))
        raise CheckpointError(f"no run of {str(folder)!r} is finished{': ' + reasons if reasons else ''}")
    chosen, notes, settings = [], [record.budget], [run.setting for run in record.runs]
    for setting in dict.fromkeys(run.setting for run in there):
        runs = [(run, Result.read(setting, run.seed, folder / run.folder)) for run in there if run.setting == setting]
        tuned, kept = _choose(runs, record.monitor)
        chosen += kept
        if tuned:
            values = ", ".join(f"{path}={value}" for path, value in tuned.items())
            notes.append(f"{row_name(setting, settings)}: validation chose {values}")
    results = Results(record.dataset, record.task, tuple(chosen))
    remarks = (
        f"{results.name(run.setting)}, seed {run.seed}: {remark}"
        for run in results.runs
        for remark in run.metrics.get("remarks", [])
    )
    notes += [*record.notes, *lost_to_references(results), *remarks, *collapse_notes(results), *control_notes(results)]
    notes += [*code_notes(folder / run.folder for run in there), *base_notes(folder, there)]
    notes += _missing([run for run in record.runs if run not in there], settings)
    return replace(results, notes=tuple(notes))


def _choose(runs: Iterable[tuple[Planned, Result]], monitor: str) -> tuple[Mapping[str, Any], list[Result]]:
    """Return the configuration with the best mean validation metric, and its runs; the first of equal ones.

    Configurations that have but a part of another's seeds are passed over; the mean is over the seeds that all others
    share. Where they share none, those with most seeds are compared, each by the mean over its own.
    """
    groups: dict[str, tuple[Mapping[str, Any], list[Result]]] = {}
    for planned, result in runs:
        groups.setdefault(json.dumps(planned.tuned), (planned.tuned, []))[1].append(result)
    valid = {
        name: {result.seed: valid_metric(result.metrics, monitor) for result in results}
        for name, (_, results) in groups.items()
    }
    whole = [name for name in groups if not any(valid[name].keys() < other.keys() for other in valid.values())]
    shared = set.intersection(*(set(valid[name]) for name in whole))
    if not shared:
        most = max(len(valid[name]) for name in whole)
        whole = [name for name in whole if len(valid[name]) == most]
    best = max(whole, key=lambda name: fmean(valid[name][seed] for seed in sorted(shared or valid[name])))
    return groups[best]


def valid_metric(metrics: Mapping[str, Any], monitor: str) -> float:
    """Return a run's validation metric, under the first ranking protocol where there are protocols."""
    valid = metrics["valid"]
    return valid[monitor] if monitor in valid else next(iter(valid.values()))[monitor]


def _missing(runs: Iterable[Planned], settings: Sequence[Setting]) -> Iterator[str]:
    """Yield a line per row and configuration: which seeds it lacks, and why."""
    lacking: dict[str, list[Planned]] = {}
    for run in runs:
        tuned = "".join(f", {path}={value}" for path, value in run.tuned.items())
        lacking.setdefault(f"{row_name(run.setting, settings)}{tuned}", []).append(run)
    for name, lost in lacking.items():
        reasons: dict[str, list[int]] = {}
        for run in lost:
            if run.failure:
                reasons.setdefault(run.failure, []).append(run.seed)
        is_one = len(reasons) == 1 and all(run.failure for run in lost)
        why = "; ".join(text if is_one else f"{of_seeds(seeds)}: {text}" for text, seeds in reasons.items())
        yield f"{MISSING}{name}, {of_seeds(run.seed for run in lost)}" + (f": {why}" if why else "")

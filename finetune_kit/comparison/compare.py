"""A comparison from beginning to end: plan, run what is missing, read back, write the tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from finetune_kit.board import Board
from finetune_kit.comparison.execute import Execution
from finetune_kit.comparison.parallel import ParallelExecution
from finetune_kit.comparison.plan import Cell, Comparison, plan_cells
from finetune_kit.comparison.record import (
    Planned,
    Record,
    read_results,
    refuse_foreign,
    refuse_other_data,
    refuse_other_plan,
)
from finetune_kit.comparison.results import Results
from finetune_kit.comparison.summary import title
from finetune_kit.comparison.write import write_tables
from finetune_kit.config import Config, resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.data.named import resolve_dataset
from finetune_kit.errors import OptionError
from finetune_kit.foreign import one_name
from finetune_kit.options import resolve
from finetune_kit.plugins import installed
from finetune_kit.presence import at_work, in_words, others_at_work
from finetune_kit.progress import Progress
from finetune_kit.training.device import make_fabric
from finetune_kit.workers.outcome import Workers


@dataclass
class Prepared:
    """A comparison, planned and checked; nothing has been trained yet.

    Args:
        comparison: What was asked for.
        execution: Its cells, with what carries them out.
        budget: What tuning every row gets, in one line.
    """

    comparison: Comparison
    execution: Execution
    budget: str

    def record(self, failures: Mapping[Path, str] | None = None) -> Record:
        """Return the plan as ``comparison.json`` has it, with why runs failed, by folder."""
        execution, runs = self.execution, []
        for cell in execution.cells:
            path = execution.path(cell)
            name = path.relative_to(execution.folder).as_posix()
            runs.append(Planned(cell.setting, cell.tuned, cell.seed, name, (failures or {}).get(path, "")))
        return Record(
            dataset=execution.dataset.name,
            dataset_fingerprint=execution.dataset.fingerprint,
            task=self.comparison.task,
            monitor=self.comparison.monitor,
            budget=self.budget,
            options={name: dict(options) for name, options in self.comparison.sections.items()},
            tune={path: list(values) for path, values in self.comparison.tune.items()},
            runs=tuple(runs),
            notes=_notes(self.comparison, [cell.config for cell in execution.cells]),
        )

    def refuse_other(self) -> None:
        """Raise if the folder holds another comparison than this one, of which this would be an extension."""
        refuse_other_plan(self.execution.folder, self.record())

    def carry_out(self, workers: Workers | None = None, board: Board | None = None) -> Results:
        """Run what is missing; return the results, whose notes say what is still missing.

        Args:
            workers: Who carries out several runs at once; None takes this process, one run after the other.
            board: Who is told, with workers; without, it is the execution's ``progress``.

        Raises:
            OptionError: When another comparison is at work on the folder.
        """
        folder = self.execution.folder
        with at_work(folder) as name:
            if others := others_at_work(folder, name):
                raise OptionError(
                    f"{str(folder)!r} is being worked on by {in_words(others[0])}; wait for its end, or name another "
                    "--output"
                )
            self.record().write(folder)
            if workers is None:
                failures = self.execution.carry_out()
            else:
                failures = ParallelExecution(self.execution, workers, board or Board(), name).carry_out()
            self.record(failures).write(folder)
            results = read_results(folder)
            write_tables(results, folder)
        return results


def compare(comparison: Comparison, folder: Path, progress: Progress | None = None) -> Results:
    """Run what of a comparison is not in its folder yet, and return its results; `ftkit compare` does the same.

    Args:
        comparison: What to compare.
        folder: Where runs, plan and tables go; pre-trained backbones go beside it, below ``pretrained/``.
        progress: Who is told.

    Raises:
        FinetuneKitError: Before anything trains, for what can be known then: options, names, data that don't fit.
    """
    return prepare(comparison, folder, progress).carry_out()


def prepare(
    comparison: Comparison, folder: Path | None, progress: Progress | None = None, *, dry: bool = False
) -> Prepared:
    """Return a comparison planned and checked.

    Args:
        comparison: What to compare.
        folder: Where it goes; None takes ``runs/compare-<dataset>``, for labels with the label's name.
        progress: Who is told.
        dry: Prepare a dataset that is given by name in a folder that vanishes.

    Raises:
        FinetuneKitError: For what can be known to fail before anything trains.
    """
    cells = plan_cells(comparison)
    config = cells[0].config
    fabric = make_fabric(config.run.device, config.run.precision)
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory())) if dry else None
        dataset = Dataset.open(resolve_dataset(config.run.data, dict(config.reader), cache))
        dataset = for_task(dataset, config.run.task)
        folder = folder or _default_folder(dataset.name, config.run.task)
        refuse_foreign(folder)
        refuse_other_data(folder, dataset.fingerprint)
        execution = Execution(cells, dataset, fabric, folder, progress or Progress())
        execution.refuse_early()
    return Prepared(comparison, execution, budget_of(comparison, cells))


def budget_of(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """Return in one line what tuning every row gets: the same for all."""
    configs = [cell.config for cell in cells]
    epochs = _span(config.finetune.epochs for config in configs)
    patience = _span(config.finetune.patience for config in configs)
    training = f"at most {epochs} epochs, patience {patience}, best epoch by validation {title(comparison.monitor)}"
    tried = len({str(cell.tuned) for cell in cells})
    if tried == 1:
        return f"tuning budget: each row had 1 configuration, no search; {training}"
    values = "; ".join(f"{path}={','.join(map(str, values))}" for path, values in comparison.tune.items())
    return (
        f"tuning budget: each row had {tried} configurations ({values}), each trained with every seed; one is "
        f"chosen for all seeds, by the mean of validation {title(comparison.monitor)} over the seeds; {training}"
    )


def _span(values: Iterable[int]) -> str:
    numbers = sorted(set(values))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _notes(comparison: Comparison, configs: Sequence[Config]) -> tuple[str, ...]:
    options = [
        f"{section}.{option}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for section, table in comparison.sections.items()
        for option, value in table.items()
        if (section, option) not in (("run", "data"), ("run", "task"))
        and any(not _is_default(config, section, option) for config in configs)
    ]
    notes = [f"options that are not at their default: {', '.join(options)}"] if options else []
    if any(config.data.split == "authors" for config in configs):
        notes.append(
            "data.split=authors chooses the best epoch on the test part, and so do --tune and the single choice of "
            "blocks: the numbers are too good to be true"
        )
    return tuple(notes)


def _is_default(config: Config, section: str, option: str) -> bool:
    """Return whether a configuration has an option at its default under its preset, or does not have it at all."""
    if section == "data" and option in config.reader:
        reader = installed().component("dataset", config.run.data)
        model = reader.load().Options
        if option not in reader.preset and model.model_fields[option].is_required():
            return False
        others = {name: value for name, value in config.reader.items() if name != option}
        made = resolve(model, {**reader.preset, **others}, section).model_dump(mode="json")
        return made[option] == config.reader[option]
    names = () if section == "run" else ("strategy", "backbone", "preset")
    plain = resolve_config({"run": {name: getattr(config.run, name) for name in names}})
    return getattr(getattr(config, section), option, None) == getattr(getattr(plain, section), option, None)


def _default_folder(dataset: str, task: str) -> Path:
    return Path("runs") / one_name("-".join(["compare", dataset, *task.split(":")[1:]]))

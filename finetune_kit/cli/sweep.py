"""`ftkit sweep`: a search over options, judged on validation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.board import ConsoleBoard
from finetune_kit.cli.output import warn
from finetune_kit.cli.sweep_result import print_found, print_plan
from finetune_kit.cli.workers import NumWorkers, Ray, make_workers
from finetune_kit.errors import OptionError

if TYPE_CHECKING:
    from finetune_kit.studies.plan import Sweep
    from finetune_kit.studies.sweep import Search

SearchFor = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SECTION.OPTION=A,B|LOW:HIGH",
        help="What is searched: values, LOW:HIGH, LOW:HIGH:STEP or LOW:HIGH:log. May be repeated.",
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(help="How many trials are drawn.  \\[default: all combinations]", show_default=False),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="grid, random or tpe.  \\[default: tpe with --trials, else grid]", show_default=False),
]
Pruner = Annotated[
    str | None,
    typer.Option(
        help="End trials that do badly on validation: median, halving, or none.  \\[default: none]",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seeds what is drawn, and the runs.  \\[default: 0]", show_default=False)
]
Seeds = Annotated[
    str | None,
    typer.Option(help="Run each trial with all of these; its mean counts.  \\[default: --seed]", show_default=False),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write, or to go on with.  \\[default: runs/sweep-STRATEGY-DATASET]", show_default=False
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a search; say so if there is none.")]


def sweep(
    strategy: Annotated[
        str | None, typer.Option(help="Strategy, by name; see ftkit strategies. A --config file may name it instead.")
    ] = None,
    search: SearchFor = None,
    trials: Trials = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    seed: Seed = None,
    seeds: Seeds = None,
    workers: NumWorkers = None,
    ray: Ray = None,
    data: arg.Data = None,
    backbone: arg.Backbone = None,
    task: arg.Task = None,
    preset: arg.Preset = None,
    output: Output = None,
    epochs: arg.Epochs = None,
    batch_size: arg.BatchSize = None,
    learning_rate: arg.LearningRate = None,
    max_length: arg.MaxLength = None,
    device: arg.Device = None,
    precision: arg.Precision = None,
    compile: arg.Compile = None,
    deterministic: arg.Deterministic = None,
    set_: arg.Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    resume: Resume = False,
    dry_run: arg.DryRun = False,
) -> None:
    """Search over options of a strategy, a backbone or training; validation chooses, then the best trial is measured.

    However it was stopped, the same command goes on; given again with more --trials, it searches on. Two at once share
    one search. The best trial is best.toml in the search's folder, which ftkit run --config takes.
    """
    flags = arg.flags_of(locals())
    own = {"trials": trials, "sampler": sampler, "pruner": pruner, "seed": seed, "seeds": seeds}
    asked = _asked(config, set_, flags, search, own)
    with _search(asked, output, dry_run=dry_run) as made:
        if resume and not (made.folder / "sweep.json").exists():
            warn(f"nothing to resume in {made.folder}; starting from the beginning")
        made.refuse_early()
        if dry_run:
            print_plan(made, json)
            return
        num_workers = min(workers, asked.num_trials) if workers and workers > 0 else workers
        if (crew := make_workers(num_workers, ray, made.device)) is not None:
            made.workers = crew
        made.board = board = ConsoleBoard("trials")
        try:
            found = made.carry_out()
        finally:
            board.close()
        print_found(made, found, json)


def _asked(
    config: Path | None,
    assignments: list[str] | None,
    flags: dict[str, Any],
    search: list[str] | None,
    own: dict[str, Any],
) -> Sweep:
    """Return the search that a command line asks for; of a file's options, those that are searched don't count."""
    given, sections = arg.read_sections(None, assignments, flags), arg.read_sections(config, assignments, flags)
    filed = sections.pop("sweep", {})
    if "strategy" not in sections.get("run", {}):
        raise OptionError("which strategy? Add --strategy NAME; `ftkit strategies` lists them")
    from finetune_kit.options import resolve
    from finetune_kit.studies.plan import Sweep, SweepOptions

    searched = _assignments(search) or filed.get("search", {})
    values = {**filed, **{name: value for name, value in own.items() if value is not None}, "search": searched}
    options = resolve(SweepOptions, values, "sweep")
    for path in options.search:
        section, _, option = path.partition(".")
        if option in sections.get(section, {}) and option not in given.get(section, {}):
            del sections[section][option]
    return Sweep(sections, options)


@contextmanager
def _search(sweep: Sweep, output: Path | None, *, dry_run: bool) -> Iterator[Search]:
    """Yield a search on its dataset; a dry run prepares one that is given by name in a folder that vanishes."""
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.labelled import for_task
    from finetune_kit.data.named import resolve_dataset
    from finetune_kit.studies.sweep import Search, default_folder

    config = sweep.shared
    with tempfile.TemporaryDirectory() as vanishing:
        cache = Path(vanishing) if dry_run else None
        dataset = Dataset.open(resolve_dataset(config.run.data, dict(config.reader), cache))
        folder = output or default_folder(dataset.name, config.run.strategy)
        yield Search(sweep, for_task(dataset, config.run.task), folder)


def _assignments(texts: list[str] | None) -> dict[str, str]:
    """Return what each ``--search`` asks for, by option."""
    searched: dict[str, str] = {}
    for text in texts or []:
        path, equals, asked = text.partition("=")
        if not equals or "." not in path:
            raise OptionError(
                f"--search {text!r} is not section.option=VALUES, e.g. finetune.learning_rate=1e-4:1e-2:log"
            )
        if path.strip() in searched:
            raise OptionError(f"--search {path.strip()} is given twice; keep one")
        searched[path.strip()] = asked.strip()
    return searched

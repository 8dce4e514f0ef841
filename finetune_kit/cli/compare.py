"""`ftkit compare`: strategies × seeds × fractions × backbones on one dataset, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.board import ConsoleBoard
from finetune_kit.cli.comparison import print_comparison, print_plan
from finetune_kit.cli.output import ConsoleProgress, print_json, warn
from finetune_kit.cli.workers import NumWorkers, Ray, make_workers
from finetune_kit.errors import FinetuneKitError, OptionError

if TYPE_CHECKING:
    from finetune_kit.comparison.plan import Comparison
    from finetune_kit.comparison.results import Results

Strategies = Annotated[str | None, typer.Option(help="Strategies, by name, with commas between; see ftkit strategies.")]
Seeds = Annotated[str, typer.Option(help="Seeds, with commas between: each row is run with all of them.")]
Fraction = Annotated[
    str | None,
    typer.Option(help="Shares of the training instances, e.g. 1.0,0.1.  \\[default: 1.0]", show_default=False),
]
Backbones = Annotated[
    str | None, typer.Option("--backbone", help="Backbones, by name.  \\[default: nextitnet]", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder to write, or to go on with.  \\[default: runs/compare-DATASET]", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.OPTION=VALUE",
        help="Any option, for those strategies that have it; several values make a row each. May be repeated.",
    ),
]
Tune = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SECTION.OPTION=A,B",
        help="Try these values on every row; the best on validation is shown. May be repeated.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with this comparison alone: refuse other options than it has.")
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write tables alone, no pictures and no report.html.")]


def compare(
    strategies: Strategies = None,
    seeds: Seeds = "0,1,2",
    fraction: Fraction = None,
    backbone: Backbones = None,
    data: arg.Data = None,
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
    tune: Tune = None,
    set_: Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    no_report: NoReport = False,
    resume: Resume = False,
    workers: NumWorkers = None,
    ray: Ray = None,
    dry_run: arg.DryRun = False,
) -> None:
    """Run strategies with several seeds on one dataset; tabulate means, tests and costs.

    However it was stopped, the same command goes on: finished runs are used again, an interrupted one is gone on with,
    and the tables are those of an undisturbed comparison. Other strategies, seeds or options are compared too, beside
    what is there.
    """
    flags = arg.flags_of(locals(), but="backbone")  # here it may be several
    if strategies is None:
        raise OptionError("which strategies? Add --strategies NAME,NAME; `ftkit strategies` lists them")
    given, sections = arg.read_sections(None, set_, flags), arg.read_sections(config, set_, flags)
    comparison = _comparison(given, sections, strategies, seeds, fraction, backbone, tune)
    from finetune_kit.comparison.compare import prepare
    from finetune_kit.comparison.write import as_json

    prepared = prepare(comparison, output, _Lines(), dry=dry_run)
    if resume:
        prepared.refuse_other()
    if dry_run:
        print_plan(prepared, json)
        return
    crew, board = make_workers(workers, ray, prepared.execution.fabric.device.type), ConsoleBoard()
    try:
        results, folder = prepared.carry_out(crew, board), prepared.execution.folder
    finally:
        board.close()
    report = None if no_report else _write_report(results, folder)
    if report is None and (old := [name for name in ("report.html", "pictures") if (folder / name).exists()]):
        warn(
            f"{' and '.join(old)} in {folder} {'are' if len(old) > 1 else 'is'} of an earlier call, not of these tables"
        )
    if json:
        print_json({**as_json(results, folder), "report": report and str(report)})
    else:
        print_comparison(results, folder, report)
    execution = prepared.execution
    if missing := sum(not execution.is_finished(cell) for cell in execution.cells):
        planned = len(execution.cells)
        runs = "run" if planned == 1 else "runs"
        raise FinetuneKitError(f"{missing} of {planned} {runs} failed, see above; the same command tries them again")


def _write_report(results: Results, folder: Path) -> Path | None:
    """Write pictures and ``report.html``, where what draws them is installed."""
    try:
        from finetune_kit.report import write_report
    except ImportError:
        warn("no pictures and no report.html: pip install 'finetune-kit[report]'")
        return None
    return write_report(results, folder)


def _comparison(
    given: dict[str, dict[str, Any]],
    sections: dict[str, dict[str, Any]],
    strategies: str,
    seeds: str,
    fraction: str | None,
    backbone: str | None,
    tune: list[str] | None,
) -> Comparison:
    """Return what a command line asks for; of a ``--config`` file's single run, strategy and seed don't count."""
    from finetune_kit.comparison.plan import Comparison
    from finetune_kit.comparison.variations import OWN, refuse_contradictions

    tuned = _assignments(tune)
    refuse_contradictions(given, tuned)
    filed = {}
    for path in (*OWN, *tuned):
        section, _, option = path.partition(".")
        filed[path] = sections.get(section, {}).pop(option, None)
    return Comparison(
        strategies=_names(strategies),
        seeds=_numbers("--seeds", seeds, int),
        fractions=_numbers("--fraction", fraction or str(filed["data.fraction"] or 1.0), float),
        backbones=_names(backbone or filed["run.backbone"] or "nextitnet"),
        sections=sections,
        tune=tuned,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(flag: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    example = {"--seeds": "0,1,2", "--fraction": "1.0,0.1"}[flag]
    try:
        numbers = tuple(kind(part) for part in _names(text))
    except ValueError:
        raise OptionError(f"{flag} {text!r}: numbers with commas between, e.g. {flag} {example}") from None
    if flag == "--seeds" and not all(seed >= 0 for seed in numbers):
        raise OptionError(f"{flag} {text!r}: a seed is 0 or more, e.g. {flag} {example}")
    if flag == "--fraction" and not all(0 < share <= 1 for share in numbers):
        raise OptionError(f"{flag} {text!r}: a share is above 0 and at most 1, e.g. {flag} {example}")
    return numbers


def _assignments(texts: list[str] | None) -> dict[str, tuple[str, ...]]:
    """Return the values of each ``--tune``, by option."""
    tuned: dict[str, tuple[str, ...]] = {}
    for text in texts or []:
        path, equals, values = text.partition("=")
        if not equals or len(path.split(".")) != 2:
            raise OptionError(f"--tune {text!r} is not section.option=v1,v2, e.g. finetune.learning_rate=1e-3,3e-4")
        if path in tuned:
            raise OptionError(f"--tune {path} is given twice; keep one")
        tuned[path] = _names(values)
    return tuned


class _Lines(ConsoleProgress):
    """One line per run; bars on a terminal alone, and what all runs warn of once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Show a bar on a terminal, nothing elsewhere."""
        if not self._console.is_terminal:
            yield lambda steps, note="": None
            return
        with super().stage(title, total) as advance:
            yield advance

    def say(self, text: str) -> None:
        """Print a line, unless it was a repeated warning or the news of a backbone reused."""
        if text.endswith("(reused)") or (text.startswith("warning: ") and text in self._said):
            return
        self._said.add(text)
        super().say(text)

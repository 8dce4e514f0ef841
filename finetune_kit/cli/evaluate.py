"""`ftkit evaluate`: measure a finished run again, on the split that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import ConsoleProgress, print_json, stdout
from finetune_kit.cli.result import dataset_of, gates_text, metrics_table, warnings
from finetune_kit.errors import OptionError, did_you_mean
from finetune_kit.files import read_metrics
from finetune_kit.memory import enough_memory

if TYPE_CHECKING:
    from finetune_kit.config import Config
    from finetune_kit.evaluation.candidates import Candidates


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    protocol: Annotated[str | None, typer.Option(help="Ranking protocols: full, sampled or full,sampled.")] = None,
    data: Annotated[str | None, typer.Option(help="The run's dataset, where it was moved.")] = None,
    base: Annotated[Path | None, typer.Option(help="The run's pre-trained backbone, where it was moved.")] = None,
    device: arg.Device = None,
    precision: arg.Precision = None,
    deterministic: arg.Deterministic = None,
    set_: arg.Set = None,
    json: arg.Json = False,
) -> None:
    """Measure a finished run again, with other protocols, cut-offs or use of its policy; writes nothing.

    For example --set evaluation.cutoffs=1,5 or --set strategy.evaluation=sample.
    """
    from finetune_kit.checkpoint import read_facts
    from finetune_kit.cli.output import warn
    from finetune_kit.config import SECTIONS, read_run, resolve_config
    from finetune_kit.data.earlier import Earlier
    from finetune_kit.training.assemble import is_merged, load_run
    from finetune_kit.training.device import make_fabric
    from finetune_kit.training.experiment import EVALUATE_LESS
    from finetune_kit.training.measure import MEASURED, measure
    from finetune_kit.training.run import Runner

    facts = read_facts(folder)  # says what is wrong with a folder that is no run
    dataset = dataset_of(folder, data, "on another dataset training and test instances would mix")
    sections = read_run(folder, SECTIONS)
    asked = arg.read_sections(None, set_, {"device": device, "precision": precision, "deterministic": deterministic})
    if is_merged(facts) and "strategy" in asked:
        raise OptionError(f"strategy.* has no effect: {str(folder)!r} is a merged run, a plain backbone with a head")
    for name, options in asked.items():
        _refuse_what_trained(name, options, sections["run"]["strategy"])
        sections[name] = {**sections.get(name, {}), **options}
    if protocol and sections["run"].get("task", "items") != "items":
        raise OptionError(
            f"--protocol has no effect: {str(folder)!r} tells {sections['run']['task']}, it ranks nothing"
        )
    if protocol:
        sections["evaluation"] = {**sections["evaluation"], "protocols": protocol}
    config = resolve_config(sections)
    run = load_run(folder, dataset, base, sections["strategy"])
    fabric, earlier, was = (
        make_fabric(config.run.device, config.run.precision),
        Earlier.read(folder),
        read_metrics(folder),
    )
    candidates = _stored_candidates(folder, config, run.dataset.num_target_items, was)
    runner = Runner(config, dataset, fabric, ConsoleProgress(), earlier=earlier, candidates=candidates)
    runner.fabric.to_device(run.strategy)
    was = {key: value for key, value in was.items() if key not in MEASURED}
    with runner.deterministically(), enough_memory("evaluation", EVALUATE_LESS):
        metrics = {**was, **measure(runner, run.strategy).metrics}
    for line in warnings(metrics):
        warn(line)
    if json:
        print_json({"folder": str(folder), **metrics})
    else:
        stdout().print(metrics_table(metrics))
        if "gates" in metrics:
            stdout().print(gates_text(metrics["gates"]))


def _stored_candidates(folder: Path, config: Config, num_items: int, metrics: Mapping[str, Any]) -> Candidates | None:
    """Return what the run's sampled ranking ranked among; None where there was none, or another number is asked for."""
    from finetune_kit.cli.output import warn
    from finetune_kit.evaluation.candidates import Candidates

    if "sampled" not in config.evaluation.protocols:
        return None
    told = metrics.get("candidates")
    if told is None:
        if "sampled" in metrics.get("test", {}):
            warn(f"{folder} stores no candidates; they are drawn anew, so sampled ranks may differ from the run's")
        return None
    if told["per_instance"] != min(config.evaluation.num_candidates, num_items - 1):
        return None
    return Candidates.read(folder, told["sha256"])


def _refuse_what_trained(section: str, options: Mapping[str, object], strategy: str) -> None:
    """Refuse options that decided the training: with another seed or split, the test would hold what was trained on."""
    from finetune_kit.plugins import installed

    model = installed().component("strategy", strategy).load()
    own = model.evaluation_options
    allowed = {("run", option) for option in ("device", "precision", "deterministic")}
    allowed |= {("strategy", option) for option in own}
    for option in options:
        if section == "strategy" and option not in (known := list(model.Options.model_fields)):
            have = ", ".join(known) or "none"
            guess = did_you_mean(option, known)
            raise OptionError(f"no option strategy.{option} of {strategy!r}.{guess} Options of strategy: {have}")
        if section != "evaluation" and (section, option) not in allowed:
            names = ", ".join(["evaluation.*", *(f"strategy.{name}" for name in sorted(own))])
            raise OptionError(
                f"{section}.{option} decided the run's training; evaluate takes {names}, --device, --precision and "
                "--deterministic"
            )

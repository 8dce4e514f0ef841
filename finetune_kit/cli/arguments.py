"""The arguments that commands share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_kit.errors import OptionError, StorageError
from finetune_kit.foreign import one_name

if TYPE_CHECKING:
    from finetune_kit.config import Config

Data = Annotated[
    str | None, typer.Option(help="Dataset folder, or a dataset's name.  \\[default: synthetic]", show_default=False)
]
Backbone = Annotated[str | None, typer.Option(help="Backbone, by name.  \\[default: nextitnet]", show_default=False)]
Task = Annotated[
    str | None,
    typer.Option(help="What to learn: items, or label:NAME.  \\[default: items]", show_default=False),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Defaults as in the paper, or as in the authors' code.  \\[default: none]", show_default=False),
]
Seed = Annotated[int | None, typer.Option(help="Seeds everything.  \\[default: 0]", show_default=False)]
SameSeed = Annotated[
    int | None, typer.Option(help="Seeds everything.  \\[default: that of --from]", show_default=False)
]
Output = Annotated[
    Path | None, typer.Option(help="Folder to write.  \\[default: a new one below runs/]", show_default=False)
]
Epochs = Annotated[int | None, typer.Option(help="At most so many fine-tuning epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Instances per fine-tuning step.")]
LearningRate = Annotated[float | None, typer.Option(help="Of fine-tuning.")]
MaxLength = Annotated[int | None, typer.Option(help="Latest source events per user that the model sees.")]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.  \\[default: auto]", show_default=False)
]
Devices = Annotated[
    int | None,
    typer.Option(help="Processes that train together on this machine.  \\[default: 1]", show_default=False),
]
Precision = Annotated[str | None, typer.Option(help="32, bf16-mixed or 16-mixed.  \\[default: 32]", show_default=False)]
Compile = Annotated[
    bool | None,
    typer.Option("--compile", help="Fuse what the blocks compute with torch.compile.", show_default=False),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic",
        help="Use deterministic algorithms alone on a GPU too; on a CPU that is the default.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.OPTION=VALUE", help="Any option, e.g. strategy.temperature=5; may be repeated."
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file of options, e.g. another run's config.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout and nothing else there.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from where an interrupted run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be run and trained; write nothing.")]

FLAGS = {
    "strategy": ("run", "strategy"),
    "data": ("run", "data"),
    "backbone": ("run", "backbone"),
    "task": ("run", "task"),
    "preset": ("run", "preset"),
    "seed": ("run", "seed"),
    "device": ("run", "device"),
    "devices": ("run", "devices"),
    "precision": ("run", "precision"),
    "compile": ("run", "compile"),
    "deterministic": ("run", "deterministic"),
    "epochs": ("finetune", "epochs"),
    "batch_size": ("finetune", "batch_size"),
    "learning_rate": ("finetune", "learning_rate"),
    "max_length": ("data", "max_length"),
}
"""Flag to the section and option that it stands for."""


def flags_of(arguments: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    """Return those arguments of a command, by name, that stand for an option; ``but`` is left out."""
    return {name: value for name, value in arguments.items() if name in FLAGS and name != but}


def read_sections(
    config: Path | None, assignments: list[str] | None, flags: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the sections of options asked for: the file's, overridden by ``--set`` and flags.

    Args:
        config: The file of ``--config``.
        assignments: The values of ``--set``.
        flags: Flag name (a key of `FLAGS`) to value; None where not given.

    Raises:
        OptionError: When a flag and a ``--set`` contradict each other, or text can't be read.
    """
    from finetune_kit.config import RECORDED, read_toml
    from finetune_kit.options import parse_assignments

    sections = where_it_is(read_toml(config)) if config else {}
    sections = {name: dict(table) for name, table in sections.items() if name not in RECORDED}
    given = parse_assignments(assignments or [])
    for flag, value in flags.items():
        if value is not None:
            section, option = FLAGS[flag]
            if option in given.setdefault(section, {}):
                raise OptionError(
                    f"--{flag.replace('_', '-')} and --set {section}.{option} are the same option; give one"
                )
            given[section][option] = value
    for name, options in given.items():
        sections[name] = merged(sections.get(name, {}), options)
    return sections


def where_it_is(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a run's configuration with the dataset's whole path where the path as typed leads nowhere from here."""
    from finetune_kit.plugins import installed

    typed, whole = sections.get("run", {}).get("data"), sections.get("files", {}).get("dataset")
    are_texts = isinstance(typed, str) and isinstance(whole, str)
    if are_texts and typed and whole and not Path(typed).is_dir() and typed not in installed().components("dataset"):
        sections["run"]["data"] = whole
    return sections


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings in one, the new one's values where both have them, and so within nested ones."""
    both = dict(old)
    for key, value in new.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if nested else value
    return both


def run_folder(config: Config, dataset: str, output: Path | None, *, resume: bool, overwrite: bool) -> Path:
    """Return the folder that a run writes to.

    Without ``--output`` it is the first free one below ``runs/``, or with ``--resume`` the latest of this
    configuration.

    Raises:
        OptionError: When ``--output`` holds something already and neither --resume nor --overwrite is given.
    """
    if resume and overwrite:
        raise OptionError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if output is not None:
        if not (resume and output.is_dir()):
            refuse_taken(output, overwrite=overwrite)
        return output
    stem = Path("runs") / one_name(f"{config.run.strategy}-{dataset}-s{config.run.seed}-{_digest(config)}")
    taken = [stem, *(stem.with_name(f"{stem.name}-{n}") for n in range(2, 10_000))]
    free = next(n for n, folder in enumerate(taken) if not folder.exists())
    return taken[free - 1] if resume and free else taken[free]


@contextmanager
def replacing(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """With --overwrite, put what stands in a run's folder aside; it comes back if the block fails, and goes if not.

    It stays aside when the block is interrupted, killed, or finds the disk full, until --resume has gone on to the end.
    Of several processes the first does so.
    """
    import shutil

    from finetune_kit.processes import here

    def put_aside() -> None:
        if aside.exists():  # an earlier --overwrite was interrupted: what stands in the folder is not finished
            shutil.rmtree(folder)
        else:
            folder.rename(aside)

    aside = folder.with_name(f".{folder.name}.replaced")
    here().alone(lambda: put_aside() if overwrite and folder.exists() else None)
    try:
        yield
    except Exception as error:
        if overwrite and here().is_first and aside.exists() and not isinstance(error, StorageError):
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        raise
    here().alone(lambda: shutil.rmtree(aside, ignore_errors=True))


def refuse_taken(
    output: Path, *, overwrite: bool, advice: str = "--resume goes on with it, --overwrite replaces it"
) -> None:
    """Raise if what stands in ``--output`` would be lost that is not a run to be replaced.

    Args:
        output: The folder that is to be written.
        overwrite: Whether a run that is there is to be replaced.
        advice: What can be done about a run that is there.
    """
    from finetune_kit.config import RECORDED, read_toml

    if output.exists() and not output.is_dir():
        raise OptionError(f"--output {str(output)!r} is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    config = output / "config.toml"
    is_run = config.exists() and read_toml(config).keys() >= {"run", *RECORDED}  # nobody else writes these
    if not overwrite or not is_run:
        raise OptionError(
            f"--output {str(output)!r} is not empty: {advice if is_run else 'it is no run; name another folder'}"
        )


def _digest(config: Config) -> str:
    """Return eight digits that tell configurations apart."""
    import hashlib
    import json

    from finetune_kit.config import deciding_options

    return hashlib.sha256(json.dumps(deciding_options(config.tables()), sort_keys=True).encode()).hexdigest()[:8]

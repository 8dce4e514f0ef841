"""The folder of an exported run: the model, its vocabularies as text, and ``signature.json``, which describes them.

A vocabulary has a line per id, the raw id as a JSON string: line n of ``source_items.jsonl`` is what the input
``sequence`` calls n (0 pads), and line n of ``target_items.jsonl`` (of a label's run,
``target_classes.jsonl``) is column n - 1 of the scores. ``users.jsonl`` is
there where the model draws per user, and so wants to know who is asking.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_kit import __version__
from finetune_kit.checksums import file_hash
from finetune_kit.environment import versions
from finetune_kit.errors import OptionError, PluginError
from finetune_kit.exporting.comparison import BATCHES, TOLERANCE, compare
from finetune_kit.exporting.formats import Format
from finetune_kit.exporting.served import USER, Served, strategy_to_export
from finetune_kit.exporting.tracing import Graph, traced
from finetune_kit.files import storing, write_json
from finetune_kit.memory import enough_memory
from finetune_kit.recommendation.answers import answers_of

if TYPE_CHECKING:
    from torch import Tensor

    from finetune_kit.training.assemble import Run

logger = logging.getLogger("finetune_kit.exporting")
"""What it is doing (info); the command line shows it on stderr."""
FORMAT_VERSION = 1
FILE = "signature.json"


def export(
    run: Run, output: Path, made: Format, *, top: int | None = None, opset: int | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a run as a model that serves without finetune-kit; return what ``signature.json`` says.

    The file is asked for the same users as the run before the folder appears.

    Args:
        run: The run, loaded.
        output: The folder to write; it appears whole or not at all.
        made: The format.
        top: How many of the best answers it gives; None gives the scores of all.
        opset: The version of ONNX's operators; None takes torch's default.
        overwrite: Whether an exported run that is there is replaced.

    Raises:
        PluginError: When the strategy can't be exported, or the file computes something else.
        OptionError: When something else is at ``output``, or the opset can't be had.
    """
    name = run.config.run.strategy
    if not run.strategy.is_deterministic:
        raise PluginError(
            f"{name!r} can't be exported: it evaluates with new noise each time, which a graph does not draw; serve it "
            "with ftkit recommend"
        )
    served = Served(strategy_to_export(run), _possible(top, run), is_topk_stable=made.is_topk_stable).eval()
    with new_folder(output, overwrite=overwrite) as folder, enough_memory("exporting", "close other programs"):
        logger.info("tracing %s", name)
        graph = traced(served, name, run.config.data.max_length)
        logger.info("writing %s", made.file)
        made.write(graph, folder / made.file, opset)
        _write_vocabularies(folder, run, draws_per_user=USER in graph.inputs)
        logger.info("comparing %s with the run", made.file)
        difference = compare(run, served, made.open(folder / made.file), list(graph.inputs))
        signature = {
            **_description(run, made, graph),
            "compared": {**vars(difference), "batches": BATCHES, "tolerance": TOLERANCE},
            "sha256": {path.name: file_hash(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / FILE, signature)
    return signature


def _possible(top: int | None, run: Run) -> int | None:
    return None if top is None else min(top, run.dataset.num_target_items)


def _description(run: Run, made: Format, graph: Graph) -> dict[str, Any]:
    """Return what a server must know, and where the model comes from."""
    names = run.config.run
    return {
        "format_version": FORMAT_VERSION,
        "written_by": __version__,
        "format": made.name,
        "file": made.file,
        "task": names.task,
        "inputs": {name: _kind(tensor) for name, tensor in graph.inputs.items()},
        "outputs": {name: _kind(tensor) for name, tensor in graph.outputs.items()},
        "num_source_items": run.dataset.num_source_items,
        "num_target_items": run.dataset.num_target_items,
        **({"num_users": run.dataset.num_users} if USER in graph.inputs else {}),
        "strategy": names.strategy,
        "backbone": names.backbone,
        "run": {"hash": run.facts["hash"], "base": run.facts["base"] and run.facts["base"]["hash"]},
        "versions": {**versions(), **{name: version(name) for name in made.packages}},
    }


def _kind(example: Tensor) -> dict[str, Any]:
    """Return type and shape of an input or output; the number of users is anybody's choice."""
    return {"type": str(example.dtype).removeprefix("torch."), "shape": ["users", *example.shape[1:]]}


def _write_vocabularies(folder: Path, run: Run, *, draws_per_user: bool) -> None:
    answers = answers_of(run)
    _write_lines(folder / "source_items.jsonl", run.dataset.raw_source_items())
    _write_lines(folder / f"target_{answers.nouns}.jsonl", answers.raw)
    if draws_per_user:
        _write_lines(folder / "users.jsonl", run.dataset.raw_users())


def _write_lines(path: Path, raw: Iterable[str]) -> None:
    """Write raw ids, each as a JSON string on a line of its own, in ASCII."""
    with storing(path), path.open("w", encoding="ascii", newline="\n") as file:
        file.writelines(f"{json.dumps(text)}\n" for text in raw)


@contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder beside ``output``, which takes its place when all ends well; what is there stays till then.

    Raises:
        OptionError: When something other than an empty folder, or an exported run to overwrite, is at ``output``.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100  (resolve() would follow a link)
    refuse_taken(output, overwrite=overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        yield folder
        refuse_taken(output, overwrite=overwrite)
        if (output / FILE).exists():
            output.rename(Path(temporary) / "replaced")
        folder.rename(output)  # an empty folder may stand there: rename takes its place


def refuse_taken(output: Path, *, overwrite: bool) -> None:
    """Raise if something would be lost that is no exported run to be replaced.

    Raises:
        OptionError: Says what stands there.
    """
    if output.exists() and not output.is_dir():
        raise OptionError(f"--output {str(output)!r} is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / FILE).is_file():
        raise OptionError(f"--output {str(output)!r} is not empty, and no exported run: name another folder")
    if not overwrite:
        raise OptionError(f"--output {str(output)!r} is an exported run; --overwrite replaces it")

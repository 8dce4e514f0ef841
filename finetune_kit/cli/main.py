"""`ftkit`: puts the subcommands together and turns errors into one line and an exit code.

Exit codes: 0 done, 2 the user's mistake, 1 ours, 130 interrupted (Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from traceback import walk_tb
from typing import Annotated, Any

import typer

from finetune_kit.cli import (
    compare,
    data,
    environment,
    evaluate,
    finetune,
    listings,
    merge,
    plugins,
    recommend,
    sections,
    train,
)
from finetune_kit.cli.going_on import command_to_go_on
from finetune_kit.cli.launch import LOST, is_first_to_tell, is_ours
from finetune_kit.memory import ANYWHERE, is_out_of_memory, out_of_memory
from finetune_kit.processes import is_lost

app = typer.Typer(
    name="ftkit",
    help="Fine-tune sequential recommenders for cold users: strategies decide, per user, what is re-learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run")(train.run)
app.command("pretrain")(train.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("merge")(merge.merge)
app.command("compare")(compare.compare)
app.add_typer(data.app, name="data")
app.add_typer(listings.strategies, name="strategies")
app.add_typer(listings.backbones, name="backbones")
app.add_typer(listings.policies, name="policies")
app.command("options")(sections.options)
app.add_typer(plugins.app, name="plugins")
app.command("env")(environment.env)


def _print_version(wanted: bool) -> None:
    if wanted:
        from finetune_kit import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Import no plugins but the built-in ones; see SECURITY.md.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Fine-tune sequential recommenders for cold users: strategies decide, per user, what is re-learned."""
    _STATE["traceback"] = traceback
    if no_plugins:
        os.environ["FTKIT_PLUGINS"] = ""  # so that processes started from here leave them out too


_STATE = {"traceback": False}


def main() -> None:
    """Run the command line and exit with its code."""
    from finetune_kit.errors import FinetuneKitError, StorageError, one_line
    from finetune_kit.foreign import visible
    from finetune_kit.interruption import Interrupted

    before = signal.signal(signal.SIGTERM, _terminate)
    Interrupted.last = signal.SIGINT
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    code, text = 0, ""
    try:
        code = app(standalone_mode=False) or 0
    except FinetuneKitError as error:
        if _STATE["traceback"]:
            raise
        going_on = command_to_go_on() if isinstance(error, StorageError) else ""
        code, text = 2, f"{error}{going_on and f', then go on with: {going_on}'}"
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:  # a full disk, a folder that can't be written
        if _STATE["traceback"]:
            raise
        what = visible(str(error.filename or "reading or writing"))
        code, text = 2, f"{what}: {error.strerror or one_line(error)}"
    except Exception as error:
        if hasattr(error, "format_message"):
            code = _explain_usage(error) if is_first_to_tell(2) else 2
        elif is_lost(error) and not _STATE["traceback"]:
            code, text = LOST, "another process of this job is gone, or does not answer; what was saved is good"
        elif is_out_of_memory(error) and not _STATE["traceback"]:
            code, text = 2, str(out_of_memory(error, "this", ANYWHERE))
        elif (plugin := _plugin_at_fault(error)) and not _STATE["traceback"]:
            reason = visible(one_line(error, with_type=True))
            code, text = 2, f"the plugin {plugin!r} failed: {reason}; ftkit --traceback shows where"
        elif is_first_to_tell(1):
            raise
        else:
            code = 1
    finally:
        if before is not None:  # else a handler that was not set in Python
            signal.signal(signal.SIGTERM, before)
    if code == INTERRUPTED:
        code, text = _interrupted()
    is_told_by_the_parent = is_ours() and (code == LOST or code > 128)
    if text and not is_told_by_the_parent and is_first_to_tell(code):
        print(f"ftkit: {text}", file=sys.stderr)
    sys.exit(code)


INTERRUPTED = 130


def _interrupted() -> tuple[int, str]:
    """Return exit code and what to tell where a signal ended the work."""
    from finetune_kit.interruption import Interrupted

    word, going_on = "terminated" if Interrupted.last == signal.SIGTERM else "interrupted", command_to_go_on()
    return 128 + Interrupted.last, f"{word}{going_on and f'; go on with: {going_on}'}"


def _terminate(number: int, frame: object) -> None:
    """End on SIGTERM as on Ctrl-C: temporary folders go, and what is done so far is saved."""
    from finetune_kit.interruption import Interrupted

    raise Interrupted(number)


def _plugin_at_fault(error: Exception) -> str | None:
    """Return the name of the third party's plugin in whose code an error arose, or None."""
    from finetune_kit.plugins import installed

    plugins = {plugin.module.partition(":")[0].partition(".")[0]: plugin for plugin in installed().loaded}
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if module in plugins and plugins[module].distribution != "finetune-kit":
            return plugins[module].name
    return None


def _explain_usage(error: Any) -> int:
    """Print what typer found wrong with a command line, in one line; a command group alone gets its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    from finetune_kit.foreign import visible

    message = visible(error.format_message()).rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "ftkit")
    print(
        f"ftkit: {message[0].lower()}{message[1:]}{'' if message.endswith('?') else ';'} see `{command} --help`",
        file=sys.stderr,
    )
    return 2

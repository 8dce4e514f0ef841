"""`ftkit`: puts the subcommands together and turns errors into one line and an exit code.

Exit codes: 0 done, 2 the user's mistake, 1 ours, 130 interrupted (Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import logging
import os
import shlex
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
    export,
    finetune,
    listings,
    merge,
    plugins,
    recommend,
    sections,
    sweep,
    train,
)
from finetune_kit.memory import ANYWHERE, is_out_of_memory, out_of_memory

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
app.command("export")(export.export)
app.command("merge")(merge.merge)
app.command("compare")(compare.compare)
app.command("sweep")(sweep.sweep)
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


_STATE = {"traceback": False, "signal": int(signal.SIGINT)}


def main() -> None:
    """Run the command line and exit with its code."""
    from finetune_kit.errors import FinetuneKitError, StorageError, one_line
    from finetune_kit.foreign import visible

    before = signal.signal(signal.SIGTERM, _terminate)
    _STATE["signal"] = int(signal.SIGINT)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        code = app(standalone_mode=False) or 0
    except FinetuneKitError as error:
        if _STATE["traceback"]:
            raise
        going_on = _command_to_go_on() if isinstance(error, StorageError) else ""
        print(f"ftkit: {error}{going_on and f', then go on with: {going_on}'}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:  # a full disk, a folder that can't be written
        if _STATE["traceback"]:
            raise
        what = visible(str(error.filename or "reading or writing"))
        print(f"ftkit: {what}: {error.strerror or one_line(error)}", file=sys.stderr)
        code = 2
    except Exception as error:
        if hasattr(error, "format_message"):
            code = _explain_usage(error)
        elif is_out_of_memory(error) and not _STATE["traceback"]:
            print(f"ftkit: {out_of_memory(error, 'this', ANYWHERE)}", file=sys.stderr)
            code = 2
        elif (plugin := _plugin_at_fault(error)) and not _STATE["traceback"]:
            reason = visible(one_line(error, with_type=True))
            print(f"ftkit: the plugin {plugin!r} failed: {reason}; ftkit --traceback shows where", file=sys.stderr)
            code = 2
        else:
            raise
    finally:
        if before is not None:  # else a handler that was not set in Python
            signal.signal(signal.SIGTERM, before)
    if code == INTERRUPTED:
        code, going_on = 128 + _STATE["signal"], _command_to_go_on()
        word = "terminated" if _STATE["signal"] == signal.SIGTERM else "interrupted"
        print(f"ftkit: {word}{going_on and f'; go on with: {going_on}'}", file=sys.stderr)
    sys.exit(code)


def _terminate(number: int, frame: object) -> None:
    """End on SIGTERM as on Ctrl-C: temporary folders go, and what is done so far is saved."""
    from finetune_kit.interruption import Interrupted

    _STATE["signal"] = number
    raise Interrupted(number)


def _command_to_go_on() -> str:
    """Return the command that goes on with the interrupted one; nothing where there is none."""
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    if next((word for word in words if not word.startswith("-")), "") not in GOING_ON:
        return ""
    return shlex.join(["ftkit", *words, *(["--resume"] if "--resume" not in words else [])])


def _plugin_at_fault(error: Exception) -> str | None:
    """Return the name of the third party's plugin in whose code an error arose, or None."""
    from finetune_kit.plugins import installed

    plugins = {plugin.module.partition(":")[0].partition(".")[0]: plugin for plugin in installed().loaded}
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if module in plugins and plugins[module].distribution != "finetune-kit":
            return plugins[module].name
    return None


INTERRUPTED = 130
GOING_ON = ("run", "pretrain", "finetune", "compare", "sweep")
"""Commands that take --resume."""


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

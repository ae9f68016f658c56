"""The command line: one verb per file, each a thin layer over `orchestrator/api.py` that renders what it returns.

Only typer is imported before a verb runs, so that `nnfleet --help` and shell completion answer at once.

Exit codes: 0 done; 1 a question was answered with no, two runs differ, or a campaign failed in another way; 2 the request cannot be met
(ConfigError, or a wrong command line); 3 the data do not allow it (DataError); 4 a checkpoint is damaged; 5 the cluster; 6 the tracking
server; 8 a run that was waited for failed; 9 it was stopped; 10 it goes on without this command; 11 a disk; 70 an error that nnfleet did
not foresee; 130 interrupted; 129 and 143 a closed terminal, or SIGTERM, before anything was submitted.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from orchestrator.cli import (
    compare,
    demo,
    diff,
    down,
    drill,
    evaluate,
    export,
    gc,
    import_folder,
    logs,
    plan,
    predict,
    queue,
    resume,
    rm,
    schema,
    status,
    stop,
    submit,
    sync,
    train,
    ui,
    up,
    validate,
)
from orchestrator.cli.output import EXIT_UNEXPECTED, answering_interrupts, note, terminal
from orchestrator.errors import NnfleetError

app = typer.Typer(
    name="nnfleet",
    help="Train nnU-Net models on a Ray cluster and see in MLflow which one is best.",
    epilog="First steps: nnfleet demo. One training: nnfleet train 17 3d_fullres 0 -tr nnUNetTrainerDA5.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its panels cut names of options off at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS: dict[str, Any] = {
    "demo": demo.demo,
    "train": train.train,
    "plan": plan.plan,
    "submit": submit.submit,
    "status": status.status,
    "logs": logs.logs,
    "queue": queue.queue,
    "stop": stop.stop,
    "resume": resume.resume,
    "validate": validate.validate,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "rm": rm.rm,
    "gc": gc.gc,
    "compare": compare.compare,
    "diff": diff.diff,
    "sync": sync.sync,
    "export": export.export,
    "import": import_folder.import_folder,
    "ui": ui.ui,
    "up": up.up,
    "down": down.down,
    "drill": drill.drill,
    "schema": schema.schema,
}


def first_sentence(verb: Callable[..., None]) -> str:
    """Of a verb's help, for the list of verbs: whole, where click would cut it off."""
    return " ".join((verb.__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."


for _name, _verb in VERBS.items():
    app.command(_name, short_help=first_sentence(_verb))(answering_interrupts(_verb))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"nnfleet {version('nnfleet')}")
        except PackageNotFoundError:
            typer.echo("nnfleet, run from a source tree without being installed")
        raise typer.Exit


class _ForPeople(logging.Formatter):
    """`Warning: ...`, as `plan` prints its own, without the name of a module."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.capitalize()}: {record.getMessage()}"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Log what happens, and show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before the verb."""
    terminal.debug = debug
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s") if debug else _ForPeople())
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
    if not debug:
        warnings.simplefilter("ignore")  # of libraries; ours are logged


def main() -> None:
    """Run the command line; an error of the NnfleetError tree becomes its message on stderr and its exit code."""
    try:
        app()
    except NnfleetError as err:
        _fail(f"Error: {err}", err.exit_code)
    except Exception as err:
        again = " ".join(["nnfleet", "--debug", *sys.argv[1:]])
        _fail(f"Unexpected error: {type(err).__name__}: {err}\nThis is a fault of nnfleet. For the traceback: {again}", EXIT_UNEXPECTED)


def _fail(text: str, code: int) -> None:
    if terminal.debug:
        logging.getLogger(__name__).exception("traceback")
    note(text)
    sys.exit(code)

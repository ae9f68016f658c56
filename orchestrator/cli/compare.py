"""`nnfleet compare`: which model is better, with the evidence."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.output import console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Runs

if TYPE_CHECKING:
    from orchestrator.cli.fitted_table import FittedTable
    from orchestrator.compare.answer import Answer
    from orchestrator.compare.text_table import TextTable

NARROW_COLUMNS = ("model", "folds", "cases", "Dice", "HD95 mm", "missed", "false")


def compare(
    runs: Runs = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FOLDER", help="Folder that holds the runs; default: nnUNet_results.")
    ] = None,
    checkpoint: Annotated[
        Literal["final", "best"], typer.Option("--checkpoint", help="Whose full validation counts; `best` is optimistic.")
    ] = "final",
    patients: Annotated[
        str | None,
        typer.Option(
            "--patients",
            metavar="REGEX|FILE.csv",
            help="Patient of each case: group (else match) of a pattern, or a table case,patient; default: those of the experiment.",
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            metavar="URI",
            help="Also the runs on this MLflow server whose folders are not seen here. Default, where none is: MLFLOW_TRACKING_URI, "
            "else the local one.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="Also write a report with pictures.")] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Also put the report into MLflow, as a run of its own; the same comparison again renews it.")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images", help="Pictures of cases in the report, also of runs with `images: false`: it then shows patients.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Compare models that are not alike; every output is marked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which of the trained models is better, paired by case, or that the data do not distinguish them."""
    from orchestrator import api

    with working("Reading results ..."):
        found = api.compare(runs or (), results, checkpoint, patients, tracking_uri, is_forced=force)
    for sentence in found.left:
        note(f"Left out: {sentence}")
    if report is not None:
        with working("Drawing ..."):
            api.write_report(found.answer, report, images=images)
        note(f"Report: {report.absolute()}")
    if mlflow:
        with working("Sending ..."):
            link = api.publish_report(found.answer, tracking_uri, images=images)
        note(f"Report in MLflow: {link}")
    if as_json:
        from orchestrator.compare.tables import as_json as plain

        print_json(plain(found.answer))
    else:
        show(found.answer)


def show(answer: "Answer") -> None:
    """Print the answer: the verdict first, then the models, then each pair."""
    from orchestrator.compare.answer import whole
    from orchestrator.compare.tables import models_table
    from orchestrator.statistics.table import DICE
    from orchestrator.statistics.verdict import sentence

    say(answer.verdict)
    for text in answer.notes:
        say(text)
    say("")
    out = console()
    title = f"{answer.dataset}, {answer.checkpoint} checkpoints, full validation of whole cases"
    out.print(drawn(models_table(answer), out.width, title))
    for each in answer.held_out:
        if len(each.of_the_leader) > len(each.pooled):  # else the verdict has this very sentence
            say("")
            say(f"On the test set {each.label}:")
            for found in each.of_the_leader:
                if found.metric == DICE:
                    say(whole(sentence(found)))
    if len(answer.of_the_leader) > 1:  # as above
        say("")
        if answer.held_out:
            say("In cross-validation:")
        for found in answer.of_the_leader:
            say(whole(sentence(found)))


def drawn(table: "TextTable", width: int, title: str) -> "FittedTable":
    """The table as it is shown on a terminal of `width` columns: on a narrow one without the least important numbers."""
    from orchestrator.cli.tables import MEDIUM, plain_table

    kept = [place for place, name in enumerate(table.head) if width >= MEDIUM or name in NARROW_COLUMNS or name.startswith("Dice")]
    shown = plain_table(*(table.head[place] if place < 2 else f">{table.head[place]}" for place in kept), title=title)
    for row in table.rows:
        shown.add_row(*(row[place] for place in kept))
    return shown

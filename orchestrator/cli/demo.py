"""`nnfleet demo`: from nothing to two trained, validated and compared models on this machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import console, note, say, working

if TYPE_CHECKING:
    from orchestrator.cluster.local_services import Services
    from orchestrator.demo import DemoPaths, Progress
    from orchestrator.run.status import RunStatus


def demo(
    cases: Annotated[int, typer.Option("--cases", help="Synthetic subjects to make.")] = 10,
    spacing_mm: Annotated[float, typer.Option("--spacing-mm", help="Voxel size in mm.")] = 3.0,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the shipped number.", show_default=False)] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where data and results go; default: in nnfleet's home.", show_default=False)
    ] = None,
    data_only: Annotated[bool, typer.Option("--data-only", help="Only make the dataset.")] = False,
) -> None:
    """Make a brain dataset, train two nnU-Nets with two workers each, validate them fully, and show which one is better."""
    from orchestrator.cluster.home import Home
    from orchestrator.demo import build_demo_dataset, write_demo_experiment

    with _progress() as report:
        base = folder or Home.default().root / demo_folder_name(cases, spacing_mm, epochs)
        paths = build_demo_dataset(base, cases=cases, spacing_mm=spacing_mm, on_progress=report)
    file = write_demo_experiment(paths, **({} if epochs is None else {"epochs": epochs}))
    note(f"Dataset: {paths.preprocessed}   Experiment: {file}")
    if not data_only:
        _train(file, paths)


def demo_folder_name(cases: int, spacing_mm: float, epochs: int | None) -> str:
    """`demo`, with what differs from the shipped numbers: another size is another experiment and gets data and results of its own."""
    from orchestrator.demo import DemoParameters

    shipped = DemoParameters()
    parts = [
        f"cases{cases}" if cases != shipped.cases else "",
        f"spacing{spacing_mm:g}" if spacing_mm != shipped.spacing_mm else "",
        f"epochs{epochs}" if epochs is not None else "",
    ]
    return "-".join(["demo", *filter(None, parts)])


def environment_line(paths: "DemoPaths") -> str:
    """What a shell needs before nnU-Net's and nnfleet's commands find the demo's data."""
    folders = {"nnUNet_raw": paths.raw, "nnUNet_preprocessed": paths.preprocessed, "nnUNet_results": paths.results}
    return " ".join(["export", *(f"{name}={quote(str(folder))}" for name, folder in folders.items())])


def _train(file: Path, paths: "DemoPaths") -> None:
    from orchestrator import api
    from orchestrator.cli.foreground import hearing_sigterm, submit_in_foreground, wait_in_foreground
    from orchestrator.cli.plan import show_plan
    from orchestrator.cli.tables import result_table, seconds, worst_exit_code
    from orchestrator.experiment.model import load_experiment
    from trainers.contract.states import RunState

    with working("Starting Ray and MLflow ..."):
        services = api.up()
    began = time.monotonic()
    with hearing_sigterm():
        submission = submit_in_foreground(load_experiment(file), services.ray_address, "Submitting ...")
        show_plan(submission.plan)
        statuses = wait_in_foreground(submission.campaign_id, services.ray_address)
    say("")
    out = console()
    out.print(result_table(statuses, out.width))
    say("")
    if all(item.state is RunState.SUCCEEDED for item in statuses):
        say(api.compare(results=paths.results).answer.verdict)
        say(f"With the evidence: nnfleet compare --results {quote(str(paths.results))} --report compare.html")
        say("")
    say(f"From submit to this table: {seconds(time.monotonic() - began)}")
    _show_links(statuses, services)
    say("")
    say("To continue with these data:")
    say(environment_line(paths))
    raise typer.Exit(worst_exit_code(statuses))


def _show_links(statuses: list["RunStatus"], services: "Services") -> None:
    """The next commands and links."""
    from orchestrator.tracking.saved_views import pages_of

    for pages in pages_of([item.mlflow_url for item in statuses], services.mlflow_uri):
        for link in pages.overview:
            say(f"{'MLflow: runs, curves, pictures':<32} {link}")
        if pages.comparison:
            say(f"{'These runs side by side':<32} {pages.comparison}")
    say(f"{'Ray dashboard':<32} {services.ray_address}  (asks for the token in {services.token_file})")
    for item in statuses:
        if item.mlflow_url:
            say(f"{item.address:<32} {item.mlflow_url}")
    say("Again later: nnfleet ui --open. Done with it: nnfleet down")


@contextmanager
def _progress() -> Iterator["Progress"]:
    """A bar on a terminal, one line per kind of work in a pipe."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    out = console(stderr=True)
    seen: set[str] = set()
    bars = Progress(TextColumn("{task.description:<16}"), BarColumn(20), MofNCompleteColumn(), console=out, disable=not out.is_terminal)
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if not out.is_terminal and what not in seen:
            seen.add(what)
            note(f"{what} ({total}) ...")
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done)

    with bars:
        yield report

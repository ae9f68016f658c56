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


CASES, CASES_TO_COMPARE = 10, 20


def demo(
    cases: Annotated[
        int | None,
        typer.Option("--cases", help=f"Synthetic subjects to make; default: {CASES}, to compare {CASES_TO_COMPARE}.", show_default=False),
    ] = None,
    spacing_mm: Annotated[float, typer.Option("--spacing-mm", help="Voxel size in mm.")] = 3.0,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the shipped number.", show_default=False)] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where data and results go; default: in nnfleet's home.", show_default=False)
    ] = None,
    data_only: Annotated[bool, typer.Option("--data-only", help="Only make the dataset.")] = False,
    to_compare: Annotated[
        bool, typer.Option("--compare", help="Train both trainers on three folds in 2D, and write the report that compares them.")
    ] = False,
) -> None:
    """Make a brain dataset, train two nnU-Nets with two workers each, validate them fully, and show which one is better."""
    from orchestrator.cluster.home import Home
    from orchestrator.demo import COMPARISON_FILE, EXPERIMENT_FILE, build_demo_dataset, demo_folder, write_demo_experiment

    cases = cases or (CASES_TO_COMPARE if to_compare else CASES)
    base = folder or Home.default().root / demo_folder_name(cases, spacing_mm, epochs, to_compare=to_compare)
    with demo_folder(base) as paths:
        with _progress() as report:
            build_demo_dataset(paths, cases=cases, spacing_mm=spacing_mm, on_progress=report)
        shipped = COMPARISON_FILE if to_compare else EXPERIMENT_FILE
        file = write_demo_experiment(paths, shipped, **({} if epochs is None else {"epochs": epochs}))
        note(f"Dataset: {paths.preprocessed}   Experiment: {file}")
        if not data_only:
            _train(file, paths)


def demo_folder_name(cases: int, spacing_mm: float, epochs: int | None, *, to_compare: bool = False) -> str:
    """`demo` or `demo-compare`, with what differs from the shipped numbers: each is an experiment with a folder of its own."""
    from orchestrator.demo import DemoParameters

    shipped = DemoParameters()
    usual = CASES_TO_COMPARE if to_compare else shipped.cases
    parts = [
        f"cases{cases}" if cases != usual else "",
        f"spacing{spacing_mm:g}" if spacing_mm != shipped.spacing_mm else "",
        f"epochs{epochs}" if epochs is not None else "",
    ]
    return "-".join(["demo-compare" if to_compare else "demo", *filter(None, parts)])


def environment_line(paths: "DemoPaths") -> str:
    """What a shell needs before nnU-Net's and nnfleet's commands find the demo's data."""
    folders = {"nnUNet_raw": paths.raw, "nnUNet_preprocessed": paths.preprocessed, "nnUNet_results": paths.results}
    return " ".join(["export", *(f"{name}={quote(str(folder))}" for name, folder in folders.items())])


def _train(file: Path, paths: "DemoPaths") -> None:
    from orchestrator import api
    from orchestrator.cli.foreground import hearing_signals, submit_in_foreground, wait_in_foreground
    from orchestrator.cli.plan import show_plan
    from orchestrator.cli.tables import result_view, seconds, worst_exit_code
    from orchestrator.experiment.model import load_experiment
    from trainers.contract.states import RunState

    with working("Starting Ray and MLflow ..."):
        services = api.up()
    began = time.monotonic()
    with hearing_signals():
        submission = submit_in_foreground(load_experiment(file), services.ray_address, "Submitting ...")
        show_plan(submission.plan)
        statuses = wait_in_foreground(submission.campaign_id, services.ray_address)
    say("")
    out = console()
    out.print(result_view(statuses, out.width))
    say("")
    if all(item.state is RunState.SUCCEEDED for item in statuses):
        answer = api.compare(results=paths.results).answer
        with working("Drawing ..."):
            api.write_report(answer, paths.report, paths.raw)
        say(answer.verdict)
        say(f"With the evidence: {paths.report}")
        say("")
    say(f"From submit to this table: {seconds(time.monotonic() - began)}")
    _show_links(statuses, services)
    say("")
    say("To continue with these data:")
    say(environment_line(paths))
    raise typer.Exit(worst_exit_code(statuses))


def _show_links(statuses: list["RunStatus"], services: "Services") -> None:
    """The next commands and links."""
    from orchestrator import api
    from orchestrator.tracking.saved_views import pages_of

    for pages in pages_of([item.mlflow_url for item in statuses], services.mlflow_uri):
        for link in pages.overview:
            say(f"{'MLflow: runs, curves, pictures':<32} {link}")
        if pages.comparison:
            say(f"{'These runs side by side':<32} {pages.comparison}")
    for made in api.snapshot(services.ray_address).comparisons:
        say(f"{'The comparison in MLflow':<32} {made.link}")
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

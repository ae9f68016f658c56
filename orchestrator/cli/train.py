"""`nnfleet train`: one training in the foreground, named as nnU-Net's users name it."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import console, note
from orchestrator.cli.parameters import Cluster, Replace
from orchestrator.errors import NnfleetError

if TYPE_CHECKING:
    from orchestrator.api import Submission
    from trainers.contract.run_spec import WorkerSpec

OPTIONS = {
    "`variant: NAME` in the experiment file": "--variant NAME",
    "`nnfleet submit --replace`": "--replace",
    "Set workers.gpus: 0 to train on CPUs": "Add --cpu to train on CPUs",
    "Ask for less under `workers`": "Ask for less (--num-workers, --cpus, --cpu)",
    "workers.count": "--num-workers",
    "workers.cpus": "--cpus",
    "workers.gpus": "--cpu",
    "epochs:": "--epochs:",
    "seeds:": "--seed:",
    "variant:": "--variant:",
    "folds:": "FOLD:",
    "configurations:": "CONFIGURATION:",
    "trainers:": "--trainer:",
    "plans:": "--plans:",
    "dataset:": "DATASET:",
}
"""Keys of the experiment file in the words of this command line, which has no file."""


def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="17, 017 or Dataset017_X.", show_default=False)],
    configuration: Annotated[str, typer.Argument(metavar="CONFIGURATION", help="Such as 3d_fullres.", show_default=False)],
    fold: Annotated[str, typer.Argument(metavar="FOLD", help="0 to 4, or all.", show_default=False)],
    trainer: Annotated[str, typer.Option("-tr", "--trainer", help="nnUNetTrainer, nnUNetTrainerDA5, ...")] = "nnUNetTrainer",
    plans: Annotated[str, typer.Option("-p", "--plans", help="Name of the plans.")] = "nnUNetPlans",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Default: nnU-Net's 1000.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: 0.", show_default=False)] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="Train beside the usual settings, in a model folder of its own.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", "--num-gpus", "-num_gpus", min=1, help="Workers, each with a GPU.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on CPUs instead of GPUs.")] = False,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="CPU cores per worker, data loading included. Default: 8, or what this machine has.")
    ] = None,
    cluster: Cluster = None,
    replace: Replace = False,
) -> None:
    """Train and validate one model, here and now.

    Ctrl-C asks whether to stop (with a loadable checkpoint, once an epoch has ended) or to leave it running; SIGTERM stops it so. The
    same command again continues it.
    """
    from orchestrator import api
    from orchestrator.cli.foreground import hearing_sigterm, wait_in_foreground
    from orchestrator.cli.tables import result_table, worst_exit_code

    named: dict[str, Any] = {"dataset": dataset, "configuration": configuration, "fold": fold, "trainer": trainer, "plans": plans}
    named |= {} if epochs is None else {"epochs": epochs}
    named |= {} if seed is None else {"seeds": [seed]}
    named |= {} if variant is None else {"variant": variant}
    with hearing_sigterm():
        try:
            submission = _submitted(named, worker_options(num_workers, cpu, cpus), cluster, replaces=replace)
        except NnfleetError as err:
            raise type(err)(in_words_of_the_command_line(str(err))) from err
        for warning in submission.plan.warnings:
            note(f"Warning: {warning}")
        statuses = wait_in_foreground(submission.campaign_id, cluster)
    out = console()
    out.print(result_table(statuses, out.width))
    for item in statuses:
        note(f"Model: {item.run_folder}" if item.epochs_done else f"No checkpoint yet: its first epoch has not ended ({item.run_folder}).")
        if item.mlflow_url:
            note(f"MLflow: {item.mlflow_url}")
    if outage := api.tracking_outage(cluster):
        note(outage)
    raise typer.Exit(worst_exit_code(statuses))


def _submitted(named: dict[str, Any], workers: dict[str, int], cluster: str | None, *, replaces: bool) -> "Submission":
    from orchestrator import api
    from orchestrator.cli.foreground import submit_in_foreground
    from orchestrator.experiment.model import single_training
    from trainers.contract.run_spec import WorkerSpec

    if cluster is None and api.is_local():
        machine = api.this_machine().total
        workers, changes = fitted(workers, WorkerSpec(), int(machine["CPU"]), int(machine["GPU"]))
        if changes:
            note(changes)
    experiment = single_training(**(named | ({"workers": workers} if workers else {})))
    return submit_in_foreground(experiment, cluster, "Checking data, starting services ...", replaces=replaces)


def fitted(asked: dict[str, int], usual: "WorkerSpec", cores: int, gpus: int) -> tuple[dict[str, int], str]:
    """The workers that were asked for, with what was left open chosen for a machine, and a line with what differs from usual. Pure.

    A machine without GPU trains on CPUs unless a number of workers, each with a GPU, was asked for.
    """
    chosen, changes = dict(asked), []
    if gpus == 0 and "gpus" not in asked and "count" not in asked:
        chosen["gpus"] = 0
        changes.append("it has no GPU, so training runs on CPUs")
    each = max(1, cores // asked.get("count", usual.count))
    if "cpus" not in asked and each < usual.cpus:
        chosen["cpus"] = each
        changes.append(f"{each} CPU core{'s' if each > 1 else ''} per worker instead of {usual.cpus}")
    return chosen, f"Fitted to this machine: {'; '.join(changes)}." if changes else ""


def in_words_of_the_command_line(text: str) -> str:
    """An error about keys of the experiment file as one about the options of this command."""
    for key, words in OPTIONS.items():
        place = re.escape(key) if key[-1] != ":" else rf"{re.escape(key[:-1])}(\.\d+)?:"  # `folds.0:` is the first of the folds
        text = re.sub(rf"(?<![\w./-]){place}", words, text)
    return text


def worker_options(num_workers: int | None, cpu: bool, cpus: int | None) -> dict[str, int]:
    """The `workers` of the experiment: only what was asked for, so that defaults live in one place."""
    options: dict[str, int] = {}
    if num_workers is not None:
        options["count"] = num_workers
    if cpu:
        options["gpus"] = 0
    if cpus is not None:
        options["cpus"] = cpus
    return options

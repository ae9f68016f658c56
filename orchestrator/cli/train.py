"""`nnfleet train`: one training in the foreground, named as nnU-Net's users name it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.nnunet_habits import (
    COMPILE,
    answers,
    refuse_contradictions,
    settings_by_environment,
)
from orchestrator.cli.output import console, note, working
from orchestrator.cli.parameters import Cluster, Priority, Replace, User
from orchestrator.cli.train_options import (
    Candidates,
    Compiles,
    Configuration,
    Continues,
    Cpu,
    Cpus,
    Dataset,
    Device,
    Epochs,
    FoldName,
    Images,
    Iterations,
    Name,
    NoCheckpoints,
    Npz,
    NumWorkers,
    OnlyValidates,
    PlansName,
    Seed,
    Trainer,
    ValBest,
    ValIterations,
    Variant,
    Weights,
)
from orchestrator.cli.worker_options import WORKER_OPTIONS, own_words, worker_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.api import Submission
    from orchestrator.run.status import RunStatus
    from trainers.contract.run_spec import WorkerSpec

OPTIONS = {
    "`variant: NAME` in the experiment file": "--variant NAME",
    "`nnfleet submit --replace`": "--replace",
    **WORKER_OPTIONS,
    "validation.candidates": "--candidates",
    "(--best)": "(--val_best)",
    "epochs:": "--epochs:",
    "train_iterations:": "--iterations:",
    "val_iterations:": "--val-iterations:",
    "pretrained_weights:": "-pretrained_weights:",
    "seeds:": "--seed:",
    "user:": "--user:",
    "variant:": "--variant:",
    "folds:": "FOLD:",
    "configurations:": "CONFIGURATION:",
    "trainers:": "--trainer:",
    "plans:": "--plans:",
    "dataset:": "DATASET:",
}
"""Keys of the experiment file in the words of this command line, which has no file."""


def train(
    dataset: Dataset,
    configuration: Configuration,
    fold: FoldName,
    trainer: Trainer = "nnUNetTrainer",
    plans: PlansName = "nnUNetPlans",
    epochs: Epochs = None,
    iterations: Iterations = None,
    val_iterations: ValIterations = None,
    seed: Seed = None,
    variant: Variant = None,
    name: Name = None,
    weights: Weights = None,
    npz: Npz = False,
    candidates: Candidates = None,
    images: Images = None,
    compiles: Compiles = None,
    only_validates: OnlyValidates = False,
    val_best: ValBest = False,
    continues: Continues = False,
    no_checkpoints: NoCheckpoints = False,
    num_workers: NumWorkers = None,
    device: Device = None,
    cpu: Cpu = False,
    cpus: Cpus = None,
    priority: Priority = None,
    user: User = None,
    cluster: Cluster = None,
    replace: Replace = False,
) -> None:
    """Train and validate one model, here and now.

    Ctrl-C asks whether to stop (with a loadable checkpoint, once an epoch has ended) or to leave it running; SIGTERM stops it so, a
    closed terminal leaves it running. The same command again continues it.
    """
    from orchestrator.cli.foreground import hearing_signals

    refuse_contradictions(continues=continues, only_validates=only_validates, has_weights=weights is not None)
    for sentence in answers(continues=continues, val_best=val_best and not only_validates, no_checkpoints=no_checkpoints):
        note(sentence)
    asked: dict[str, Any] = {
        "epochs": epochs,
        "train_iterations": iterations,
        "val_iterations": val_iterations,
        "seeds": None if seed is None else [seed],
        "variant": variant,
        "name": name,
        "pretrained_weights": None if weights is None else _absolute(weights),
        "validation": {**({"npz": True} if npz else {}), **({} if candidates is None else {"candidates": candidates})} or None,
        "priority": priority,
        "user": user,
        "images": images,
        "compile": compiles,
    }
    named = {"dataset": dataset, "configuration": configuration, "fold": fold, "trainer": trainer, "plans": plans}
    named |= {key: value for key, value in asked.items() if value is not None}
    with hearing_signals(), own_words(OPTIONS):
        if only_validates:
            statuses = _validated(named, cluster, npz=npz, best=val_best)
        else:
            statuses = _trained(named, worker_options(num_workers, cpu, cpus, device), cluster, replaces=replace)
    _show(statuses, cluster)
    raise typer.Exit(exit_code(statuses, best_is_enough=only_validates and val_best))


def _show(statuses: list["RunStatus"], cluster: str | None) -> None:
    from orchestrator import api
    from orchestrator.cli.tables import result_view

    out = console()
    out.print(result_view(statuses, out.width))
    for item in statuses:
        note(f"Model: {item.run_folder}" if item.epochs_done else f"No checkpoint yet: its first epoch has not ended ({item.run_folder}).")
        if item.mlflow_url:
            note(f"MLflow: {item.mlflow_url}")
    if outage := api.tracking_outage(cluster):
        note(outage)


def exit_code(statuses: "Sequence[RunStatus]", *, best_is_enough: bool) -> int:
    """As for every command that waits; `best_is_enough`: a stopped run whose best checkpoint is validated is what was asked for."""
    from orchestrator.cli.tables import worst_exit_code
    from trainers.contract.states import RunState

    open_ends = [item for item in statuses if not (item.state is RunState.STOPPED and "best" in item.full_dice)]
    return worst_exit_code(open_ends if best_is_enough else statuses)


def _absolute(file: Path) -> str:
    """A path that means the same elsewhere; `~` is left to the machine that has the file, and a run is no path."""
    from orchestrator.experiment.first_weights import names_run

    return str(file if str(file).startswith("~") or names_run(file) else file.absolute())


def _trained(named: dict[str, Any], workers: dict[str, int], cluster: str | None, *, replaces: bool) -> list["RunStatus"]:
    from orchestrator.cli.foreground import wait_in_foreground

    submission = _submitted(named, workers, cluster, replaces=replaces)
    for warning in submission.plan.warnings:
        note(f"Warning: {warning}")
    return wait_in_foreground(submission.campaign_id, cluster)


def _validated(named: dict[str, Any], cluster: str | None, *, npz: bool, best: bool) -> list["RunStatus"]:
    """The runs that these names mean, validated again; nothing is trained."""
    from orchestrator import api
    from orchestrator.cli.foreground import wait_in_foreground
    from orchestrator.experiment.model import single_training
    from trainers.contract.run_spec import model_address

    if ":" in named["trainer"]:  # a class of the user's, whose epochs have to be named only where it trains
        named = {"epochs": 1, **named}
    experiment = single_training(**named)
    models = [
        (model_address(experiment.dataset, configuration, trainer, plans, experiment.variant, seed), fold)
        for plans, configuration, trainer, seed, fold in experiment.axes()
    ]
    with working("Submitting the validation ..."):
        submitted = api.validate([f"{model}/{fold}" for model, fold in models], cluster, npz=npz, best=best)
    campaigns = [submission_id.removeprefix("campaign-") for submission_id in submitted]
    return [status for campaign in campaigns for status in wait_in_foreground(campaign, cluster)]


def _submitted(named: dict[str, Any], workers: dict[str, int], cluster: str | None, *, replaces: bool) -> "Submission":
    from orchestrator import api
    from orchestrator.cli.foreground import submit_in_foreground
    from orchestrator.experiment.model import single_training
    from trainers.contract.run_spec import WorkerSpec

    changes = ""
    if cluster is None and api.is_local():
        machine = api.this_machine().total
        workers, changes = fitted(workers, WorkerSpec(), int(machine["CPU"]), int(machine["GPU"]))
    environment = {key: value for key, value in os.environ.items() if not (key == COMPILE and "compile" in named)}
    by_habit, sentences = settings_by_environment(environment, workers.get("cpus", WorkerSpec().cpus))
    for sentence in sentences:
        note(sentence)
    experiment = single_training(**(by_habit | named | ({"workers": workers} if workers else {})))
    submission = submit_in_foreground(experiment, cluster, "Checking data, starting services ...", replaces=replaces)
    if changes:  # of a run that starts: in front of an error it would only hide that
        note(changes)
    return submission


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

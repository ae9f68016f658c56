"""`nnfleet train`: one training in the foreground, named as nnU-Net's users name it."""

from typing import Annotated, Any

import typer

from orchestrator.cli.output import console, note, working
from orchestrator.cli.parameters import Cluster


def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="17, 017 or Dataset017_X.", show_default=False)],
    configuration: Annotated[str, typer.Argument(metavar="CONFIGURATION", help="Such as 3d_fullres.", show_default=False)],
    fold: Annotated[str, typer.Argument(metavar="FOLD", help="0 to 4, or all.", show_default=False)],
    trainer: Annotated[str, typer.Option("-tr", "--trainer", help="nnUNetTrainer, nnUNetTrainerDA5, ...")] = "nnUNetTrainer",
    plans: Annotated[str, typer.Option("-p", "--plans", help="Name of the plans.")] = "nnUNetPlans",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Default: nnU-Net's 1000.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: 0.", show_default=False)] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", "--num-gpus", "-num_gpus", min=1, help="Workers, each with a GPU.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on CPUs instead of GPUs.")] = False,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="CPU cores per worker, data loading included.")] = None,
    cluster: Cluster = None,
) -> None:
    """Train and validate one model, here and now. Ctrl-C asks whether to stop with a loadable checkpoint or to leave it running."""
    from orchestrator import api
    from orchestrator.cli.foreground import wait_in_foreground
    from orchestrator.cli.tables import result_table, worst_exit_code
    from orchestrator.experiment import single_training

    overrides: dict[str, Any] = {"workers": worker_options(num_workers, cpu, cpus)}
    overrides |= {} if epochs is None else {"epochs": epochs}
    overrides |= {} if seed is None else {"seeds": [seed]}
    experiment = single_training(dataset, configuration, fold, trainer, plans, **{k: v for k, v in overrides.items() if v})
    with working("Checking data, starting services ..."):
        submission = api.submit(experiment, cluster)
    for warning in submission.plan.warnings:
        note(f"Warning: {warning}")
    statuses = wait_in_foreground(submission.campaign_id, cluster)
    out = console()
    out.print(result_table(statuses, out.width))
    for item in statuses:
        note(f"Model: {item.run_folder}")
        if item.mlflow_url:
            note(f"MLflow: {item.mlflow_url}")
    if all(item.state.is_final for item in statuses):
        raise typer.Exit(worst_exit_code(statuses))


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

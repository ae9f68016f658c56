"""`nnfleet up`: the local Ray head and MLflow server."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson

AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host", metavar="NAME", help="A name by which browsers reach MLflow through a proxy; may be repeated, and is kept."
    ),
]
Artifacts = Annotated[
    Path | None, typer.Option("--artifacts", metavar="FOLDER", help="Where MLflow keeps checkpoints and files; kept for later calls.")
]


def up(
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="CPUs for runs. Default: what this shell may use.", show_default=False)
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=0, help="GPUs for runs. Default: those in CUDA_VISIBLE_DEVICES, else all.", show_default=False),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option("--memory-gib", min=1, help="Memory for runs. Default: the limit of this shell, else all.", show_default=False),
    ] = None,
    allow_host: AllowHost = None,
    artifacts: Artifacts = None,
    as_json: AsJson = False,
) -> None:
    """Start the local Ray cluster and MLflow server; does nothing when they run. Numbers that are named hold until `nnfleet down`."""
    from orchestrator import api

    with working("Starting Ray and MLflow ..."):
        services = api.up(num_cpus=cpus, num_gpus=gpus, memory_gib=memory_gib, allow_hosts=allow_host or (), artifacts=artifacts)
    if as_json:
        print_json({"cluster": services.ray_address, "mlflow": services.mlflow_uri, "token_file": str(services.token_file)})
        return
    say(f"Ray dashboard and job server  {services.ray_address}  (token in {services.token_file})")
    say(f"MLflow                        {services.mlflow_uri}")

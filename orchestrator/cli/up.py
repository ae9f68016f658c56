"""`nnfleet up`: the local Ray head and MLflow server."""

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson


def up(as_json: AsJson = False) -> None:
    """Start the local Ray cluster and MLflow server; does nothing when they run."""
    from orchestrator import api

    with working("Starting Ray and MLflow ..."):
        services = api.up()
    if as_json:
        print_json({"cluster": services.ray_address, "mlflow": services.mlflow_uri, "token_file": str(services.token_file)})
        return
    say(f"Ray dashboard and job server  {services.ray_address}  (token in {services.token_file})")
    say(f"MLflow                        {services.mlflow_uri}")

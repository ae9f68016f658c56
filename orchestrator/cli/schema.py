"""`nnfleet schema`: the experiment file's JSON schema."""

from orchestrator.cli.output import print_json


def schema() -> None:
    """Print the JSON schema of the experiment file, for editors that complete and check YAML."""
    from orchestrator.experiment.model import experiment_schema

    print_json(experiment_schema())

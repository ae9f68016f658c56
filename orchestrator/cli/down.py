"""`nnfleet down`: end what `up` started."""

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson


def down(as_json: AsJson = False) -> None:
    """Stop the local Ray cluster and MLflow server; runs continue from their last epoch when they are submitted again."""
    from orchestrator import api

    with working("Stopping Ray and MLflow ..."):
        api.down()
    if as_json:
        print_json({"down": True})
        return
    say("Ray and MLflow of this machine are down.")

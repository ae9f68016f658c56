"""`nnfleet down`: end what `up` started."""

from orchestrator.cli.output import say, working


def down() -> None:
    """Stop the local Ray cluster and MLflow server; runs continue from their last epoch when they are submitted again."""
    from orchestrator import api

    with working("Stopping Ray and MLflow ..."):
        api.down()
    say("Ray and MLflow of this machine are down.")

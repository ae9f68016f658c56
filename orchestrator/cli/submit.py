"""`nnfleet submit`: hand an experiment to the cluster; the laptop may leave."""

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, ExperimentFile


def submit(experiment: ExperimentFile, cluster: Cluster = None, as_json: AsJson = False) -> None:
    """Send an experiment to the cluster. The same experiment again continues what is unfinished and repeats nothing."""
    import json

    from orchestrator import api
    from orchestrator.cli.plan import show_plan
    from orchestrator.experiment import load_experiment

    wanted = load_experiment(experiment)
    with working("Submitting ..."):
        submission = api.submit(wanted, cluster)
    if as_json:
        plan = json.loads(submission.plan.to_json())
        print_json({"campaign": submission.campaign_id, "submission_id": submission.submission_id, "plan": plan})
        return
    show_plan(submission.plan)
    where = f" --cluster {cluster}" if cluster else ""
    say(f"Submitted as campaign {submission.campaign_id}. Watch it: nnfleet status --watch{where}")

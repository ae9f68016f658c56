"""`nnfleet submit`: hand an experiment to the cluster; the laptop may disconnect."""

import os

from orchestrator.cli.nnunet_habits import unread
from orchestrator.cli.output import note, print_json, say
from orchestrator.cli.parameters import AsJson, Cluster, ExperimentFile, Priority, Replace, User, cluster_option


def submit(
    experiment: ExperimentFile,
    priority: Priority = None,
    user: User = None,
    cluster: Cluster = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Send an experiment to the cluster. The same experiment again continues what is unfinished and repeats nothing."""
    import json

    from orchestrator.cli.foreground import submit_in_foreground
    from orchestrator.cli.plan import show_plan
    from orchestrator.experiment.model import load_experiment, with_keys

    wanted = with_keys(load_experiment(experiment), priority=priority, user=user)
    for sentence in unread(os.environ, wanted):
        note(sentence)
    submission = submit_in_foreground(wanted, cluster, "Submitting ...", replaces=replace)
    if as_json:
        plan = json.loads(submission.plan.to_json())
        print_json({"campaign": submission.campaign_id, "submission_id": submission.submission_id, "plan": plan})
        return
    show_plan(submission.plan)
    if submission.plan.n_finished == len(submission.plan.rows) and not submission.plan.preprocesses:
        say(f"Nothing is left to train or validate. Campaign {submission.campaign_id} brings MLflow what it lacks, and ends.")
        return
    say(f"Submitted as campaign {submission.campaign_id}. Watch it: nnfleet status --watch{cluster_option(cluster)}")

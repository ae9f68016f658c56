"""Whom a stop, an early end, or a request for another place in the queue, asks: whatever becomes of one request, the others are made."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.run.job_record import is_test_set, named_test_sets
from trainers.contract.requests import request_stop
from trainers.contract.run_folder import RunFolder
from trainers.errors import ConfigError, NnfleetError, joined

if TYPE_CHECKING:
    from orchestrator.campaign.follower import Follower, JobServer
    from orchestrator.cluster.target import Target
    from orchestrator.experiment.plan import PlanReport
    from orchestrator.run.job_record import JobRecord
    from orchestrator.run.status import RunStatus


@dataclass(frozen=True)
class HowToEnd:
    """In which way runs are asked to end."""

    now: bool = False
    """At once; else after the epoch or the cases in work."""
    finish: bool = False
    """As a trained run, which is validated."""
    anneal_epochs: int = 0
    """With `finish`: the learning rate is annealed over so many more epochs."""

    @property
    def arguments(self) -> list[str]:
        """For the job that asks."""
        finishing = ["--finish", "--anneal", str(self.anneal_epochs)]
        return finishing if self.finish else ["--now"] if self.now else []


def ask_each(requests: Iterable[Callable[[], None]]) -> None:
    """Make each request, whatever becomes of the others. Raises the first error, with the texts of all."""
    errors: list[NnfleetError] = []
    for request in requests:
        try:
            request()
        except NnfleetError as err:
            errors.append(err)
    if errors:
        raise joined(errors)


def meant_test_sets(runs: Sequence[str], follower: "Follower | None", *, everything: bool) -> list["JobRecord"]:
    """The living jobs of test sets that a stop of `runs` means, else of `everything`. Raises ConfigError for one that does not live."""
    names = [name for name in runs if is_test_set(name)]
    living = follower.test_sets() if follower is not None and (names or everything) else []
    return named_test_sets(names, living, "stop") if runs else living


def end_test_sets(jobs: Sequence["JobRecord"], server: "JobServer", on_end: Callable[["JobRecord"], None] | None = None) -> None:
    """End the jobs of test sets, which keep finished cases; `on_end` gets each that was asked. Raises as `ask_each`."""

    def end(job: "JobRecord") -> None:
        server.stop(job.submission_id)
        if on_end is not None:
            on_end(job)

    ask_each(partial(end, job) for job in jobs)


def of_all_campaigns(living: Sequence["RunStatus"], follower: "Follower") -> list["RunStatus"]:
    """Runs that are to stop, and once more those that another campaign awaits too, whose data are being preprocessed: it would go on with
    them."""
    more = [
        status.model_copy(update={"campaign": campaign})
        for campaign, runs in follower.awaiting({status.run_key for status in living}).items()
        for status in living
        if status.campaign != campaign and any(run.run_key == status.run_key for run in runs)
    ]
    return [*living, *more]


def ask_to_stop(
    living: Sequence["RunStatus"], meant: "Target", follower: "Follower", how: HowToEnd, on_wait: Callable[[str], None] | None = None
) -> None:
    """Ask runs to stop, or to end early: at once those of campaigns that own theirs, then those of each other campaign as soon as it does.

    `on_wait` gets what is waited for. Raises as `ask_each`: also the error of a campaign that fails before it owns its runs.
    """
    ask = partial(_ask, meant=meant, follower=follower, how=how)
    begins = [name for name in dict.fromkeys(status.campaign for status in living) if not follower.has_reported(name)]

    def ask_once_begun(campaign: str) -> None:
        if on_wait is not None:
            on_wait(f"Campaign {campaign} still begins: its runs are asked as soon as it owns them.")
        plan = follower.first_report(f"campaign-{campaign}", on_wait).plan
        if plan is not None and plan.preprocesses:
            _end_while_it_preprocesses(campaign, plan, living, follower)
            return
        ask([status for status in living if status.campaign == campaign])

    begun = [status for status in living if status.campaign not in begins]
    ask_each([*([partial(ask, begun)] if begun else []), *(partial(ask_once_begun, campaign) for campaign in begins)])


def stop_paused(paused: Sequence["RunStatus"], meant: "Target", *, is_now: bool) -> None:
    """Have runs that no campaign follows, and whose folders are seen here, left as stopped by a `resume` of all. Raises as `ask_each`."""
    if meant.reached is not None:
        from orchestrator.campaign.control_job import stop_all

        stop_all([status.run_folder for status in paused], [status.run_key for status in paused], meant.jobs, is_now=is_now)
        return

    def leave(status: "RunStatus") -> None:
        folder = RunFolder(status.run_folder)
        folder.spec_of(status.run_key, "stop")
        request_stop(folder, is_now=is_now)

    ask_each(partial(leave, status) for status in paused)


def _end_while_it_preprocesses(campaign: str, plan: "PlanReport", living: Sequence["RunStatus"], follower: "Follower") -> None:
    """End a campaign that has no runs yet, with its preprocessing. Raises ConfigError where only some of its runs are meant."""
    meant = {status.run_key for status in living if status.campaign == campaign}
    if kept := [run.address for run in plan.awaited if run.run_key not in meant]:
        raise ConfigError(
            f"stop: campaign {campaign} preprocesses first, so that its runs cannot be stopped one by one yet ({kept[0]} is not meant). "
            f"Stop all of them: nnfleet stop --campaign {campaign}."
        )
    follower.withdraw(campaign)


def _ask(runs: Sequence["RunStatus"], meant: "Target", follower: "Follower", how: HowToEnd) -> None:
    """From here where the folders of all runs are seen here, else by one small job on the cluster."""
    if meant.local is not None and all(RunFolder(status.run_folder).spec_file.is_file() for status in runs):
        from orchestrator.campaign.control_job import finish_all, stop_all

        folders, run_keys = [status.run_folder for status in runs], [status.run_key for status in runs]
        if how.finish:
            finish_all(folders, run_keys, anneal_epochs=how.anneal_epochs)
        else:
            stop_all(folders, run_keys, meant.jobs, is_now=how.now)
        return
    keys = [argument for status in runs for argument in ("--run-key", status.run_key)]
    arguments = ["stop", *[str(status.run_folder) for status in runs], *keys, *how.arguments]
    follower.finish(meant.jobs.submit_control(f"stop-{runs[0].run_key}-{secrets.token_hex(3)}", arguments))


def ask_for_place(runs: Sequence["RunStatus"], meant: "Target", follower: "Follower", *, priority: int | None, is_first: bool) -> None:
    """Ask for another place in the queue, likewise from here or by one small job on the cluster. Raises as `ask_each`."""
    folders, keys = [status.run_folder for status in runs], [status.run_key for status in runs]
    if meant.local is not None and all(RunFolder(folder).spec_file.is_file() for folder in folders):
        from orchestrator.campaign.control_job import place_all

        place_all(folders, keys, priority=priority, is_first=is_first)
        return
    named = [argument for key in keys for argument in ("--run-key", key)]
    how = [*([] if priority is None else ["--priority", str(priority)]), *(["--first"] if is_first else [])]
    follower.finish(meant.jobs.submit_control(f"place-{keys[0]}-{secrets.token_hex(3)}", ["place", *map(str, folders), *named, *how]))

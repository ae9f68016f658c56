"""The drill's job: `python -m orchestrator.drill.job --order JSON`, a small Ray job on the cluster that is drilled.

It trains a toy run to its end, trains it again under another name while it kills what the order names, and compares the two. Killing is
done by a task on the very node, which sends SIGKILL to a process that the drill's own run folder names and that carries the id of the
drill's own training job: never to anything else.
"""

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.campaign.events import CampaignLog
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.processes import family
from orchestrator.drill.dataset import CONFIGURATION, write_drill_dataset
from orchestrator.drill.order import (
    OUTAGE_S,
    Mend,
    Order,
    Part,
    Phase,
    Recovered,
    Refused,
    Report,
    Reported,
    Strike,
    Struck,
    differences,
)
from orchestrator.errors import ClusterError, ConfigError, NnfleetError, TrackingError
from orchestrator.experiment.model import FOLDERS, Experiment, single_training
from orchestrator.run.activity import owner_of
from orchestrator.run.events import emit
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import noted_run_id
from trainers.contract.commits import Committed, committed_position, newest_committed
from trainers.contract.fencing import claims_seen
from trainers.contract.records import TokenClaim, read_heartbeat, read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState
from trainers.storage.files import expanded

REFERENCE, DRILLED = "Dataset998_NnfleetDrillReference", "Dataset999_NnfleetDrill"
PATIENCE_S = 300.0
POLL_S = 0.2
HEAD_RESOURCE = "node:__internal_head__"


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the job; its report is its last event."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", required=True, help="what to do, as JSON")
    order = Order.model_validate_json(parser.parse_args(arguments).order)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        folder = place_of(order)
        with contextlib.closing(Drill(order, folder, Jobs.inside_job())) as drill:
            report = drill.run()
        emit(Reported(report=report.model_copy(update={"stays": tuple(drill.stays)})))
    except NnfleetError as err:
        emit(Refused(message=str(err)))
        return err.exit_code
    return 0


def place_of(order: Order) -> Path:
    """A folder of the drill's own, as this node sees it. Raises ConfigError when none is named."""
    named = order.folder or os.environ.get(FOLDERS[2], "")
    if not named:
        raise ConfigError("drill: nnUNet_results is not set on the cluster's head. Name a folder that all nodes see: --folder /path.")
    place = expanded(Path(named)) / f"nnfleet-drill-{order.drill}"
    try:
        place.mkdir(parents=True)
    except OSError as err:
        raise ConfigError(f"drill: {place} cannot be made: {err}. Name a folder that the cluster's nodes may write: --folder.") from err
    return place


@dataclass
class Drill:
    """One drill in a folder of its own."""

    order: Order
    folder: Path
    jobs: Jobs
    stays: list[str] = field(default_factory=list)
    _campaigns: list[str] = field(default_factory=list)

    def run(self) -> Report:
        """Reference, struck run, comparison."""
        emit(Phase(text="writing a toy dataset"))
        for dataset in (REFERENCE, DRILLED):
            write_drill_dataset(self.folder / "nnUNet_preprocessed", dataset)
        emit(Phase(text="training it undisturbed"))
        reference = self._ended(self._submitted(REFERENCE))
        emit(Phase(text="training it again"))
        campaign = self._submitted(DRILLED)
        strikes = []
        for index, part in enumerate(self.order.parts):
            strikes.append(self._strike(part, self._folder_of(campaign), self.order.epoch_of(index)))
            emit(Recovered(strike=strikes[-1]))
        if any(strike.recovery_s is None for strike in strikes):
            return Report(strikes=tuple(strikes), differences=("the struck run did not go on: " + self._why(campaign),))
        return self._report(strikes, reference, self._ended(campaign))

    def close(self) -> None:
        """End what still runs of this drill and clean up, unless it is to be kept."""
        living = [job for job in self.jobs.records() if job.campaign in self._campaigns and job.is_live]
        for job in sorted(living, key=lambda job: job.kind != "campaign"):
            self.jobs.stop(job.submission_id)
        deadline = time.monotonic() + 60
        while any(self.jobs.find(job.submission_id).is_live for job in living) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if self.order.keeps:
            self.stays.append(f"{self.folder} and MLflow's experiment {self._experiment_name}, as asked")
            return
        uri = self._tracking_uri()  # named in the folder that goes now
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            self.stays.append(f"{self.folder}: delete it by hand")
        if uri:
            from orchestrator.tracking.client import Tracker

            try:
                Tracker(uri).delete_experiment(self._experiment_name)
            except TrackingError as err:
                self.stays.append(f"MLflow's experiment {self._experiment_name}: {err}")

    @property
    def _experiment_name(self) -> str:
        return f"nnfleet-drill-{self.order.drill}"

    def _tracking_uri(self) -> str:
        for path in self.folder.glob("nnUNet_results/*/*/*/nnfleet/mlflow.json"):
            with contextlib.suppress(OSError, NnfleetError):
                if bound := read_mlflow_run(RunFolder(path.parents[1])):
                    return bound.tracking_uri
        return ""

    def _submitted(self, dataset: str) -> str:
        campaign = f"{self.order.drill}-{len(self._campaigns)}"
        self._campaigns.append(campaign)
        self.jobs.submit_campaign(campaign, experiment_of(self.order, self.folder, dataset, self._experiment_name).to_yaml())
        return campaign

    def _log_of(self, campaign: str) -> CampaignLog:
        log_so_far = CampaignLog().update(self.jobs.logs(f"campaign-{campaign}"))
        if log_so_far.error is not None:
            raise log_so_far.error
        return log_so_far

    def _folder_of(self, campaign: str) -> RunFolder:
        """The folder of a campaign's one run, once its status is known."""
        await_(lambda: bool(self._log_of(campaign).statuses), f"campaign {campaign} emits no status")
        (status,) = self._log_of(campaign).statuses.values()
        return RunFolder(status.run_folder)

    def _ended(self, campaign: str) -> RunStatus:
        """The one run of a campaign at its end. Raises ClusterError unless it succeeded."""
        while True:
            log_so_far = self._log_of(campaign)
            if log_so_far.exit_code is not None:
                (status,) = log_so_far.statuses.values()
                if status.state is not RunState.SUCCEEDED:
                    raise ClusterError(f"drill: its toy run ended as {status.state}: {status.reason}")
                return status
            if not self.jobs.find(f"campaign-{campaign}").is_live:
                raise ClusterError(f"drill: campaign-{campaign} died. Read its log: ray job logs campaign-{campaign}")
            time.sleep(1)

    def _why(self, campaign: str) -> str:
        return "; ".join(f"{status.state}: {status.reason or 'no reason given'}" for status in self._log_of(campaign).statuses.values())

    def _strike(self, part: Part, folder: RunFolder, epoch: int) -> Strike:
        await_(lambda: committed_position(folder)[0] >= epoch and is_under_way(folder), f"epoch {epoch} of the toy run is not reached")
        time.sleep(0.3 * reached(folder).history[-1].epoch_s)
        before, fencing_token = reached(folder), read_heartbeat(folder).fencing_token
        moment = f"in epoch {before.epochs_done} of {self.order.epochs}"
        what = self._kill(part, folder)
        struck, struck_unix = time.monotonic(), time.time()
        emit(Struck(part=part, what=what))
        if part == "tracking":
            return self._outage(folder, before, what, moment, struck)
        while time.monotonic() - struck < PATIENCE_S:
            now = read_heartbeat(folder)
            if now.fencing_token > fencing_token:
                lost = "" if reached(folder).position >= before.position else f"a committed state: {before.position}"
                redone = max(0, before.epochs_done - now.epoch + 1)
                seconds = max(0.0, now.unix - struck_unix)
                return Strike(part=part, what=what, moment=moment, recovery_s=seconds, epochs_redone=redone, lost=lost)
            time.sleep(POLL_S)
        return Strike(part=part, what=what, moment=moment, lost=f"no training step within {PATIENCE_S:.0f} s")

    def _kill(self, part: Part, folder: RunFolder) -> str:
        job = owner_of(folder)
        if job is None or not job.job:
            raise ClusterError(f"drill: no driver has acquired the run in {folder.root}")
        match part:
            case "tracking":
                return kill_tracking(self.order)
            case "worker" | "driver":
                claim = newest_claim(folder, "workers" if part == "worker" else "driver")
                return str(on_node(claim.node, kill_process, claim.pid, job.job))
            case "node":
                claim = newest_claim(folder, "workers")
                check_node(claim.node)
                return str(on_node(claim.node, kill_raylet, job.job, self.order.is_sure))

    def _outage(self, folder: RunFolder, before: Committed, what: str, moment: str, struck: float) -> Strike:
        """Training goes on; recovered is what MLflow has again."""
        from orchestrator.tracking.client import Tracker

        time.sleep(OUTAGE_S)
        emit(Mend())  # whoever asked for the drill starts the server again
        run_id = noted_run_id(folder)
        while time.monotonic() - struck < PATIENCE_S:
            with contextlib.suppress(TrackingError):
                if len(Tracker(self.order.tracking_uri).logged_epochs(run_id)) > before.epochs_done:
                    return Strike(part="tracking", what=what, moment=moment, recovery_s=time.monotonic() - struck)
            time.sleep(POLL_S)
        return Strike(part="tracking", what=what, moment=moment, lost=f"MLflow got nothing within {PATIENCE_S:.0f} s")

    def _report(self, strikes: list[Strike], reference: RunStatus, struck: RunStatus) -> Report:
        from trainers.network.checkpoint import weights_digest

        whole, ours = RunFolder(reference.run_folder), RunFolder(struck.run_folder)
        digests = weights_digest(ours.checkpoint("final")), weights_digest(whole.checkpoint("final"))
        found = differences(reached(ours).history, reached(whole).history, *digests)
        found += self._missing_in_mlflow(ours)
        return Report(strikes=tuple(strikes), differences=tuple(found), weights_sha256=digests[0])

    def _missing_in_mlflow(self, folder: RunFolder) -> list[str]:
        bound = read_mlflow_run(folder)
        if bound is None:
            return []
        from orchestrator.tracking.client import Tracker

        have = Tracker(bound.tracking_uri).logged_epochs(bound.run_id)
        missing = [row.epoch for row in reached(folder).history if row.epoch not in have]
        return [f"MLflow lacks epochs {missing}"] if missing else []


def experiment_of(order: Order, folder: Path, dataset: str, name: str) -> Experiment:
    """The toy run; its seed is of this drill alone, so that it is no run that anybody had before."""
    return single_training(
        dataset,
        CONFIGURATION,
        0,
        seeds=[int(order.drill, 16)],
        epochs=order.epochs,
        train_iterations=40,
        val_iterations=4,
        workers={"count": 2, "gpus": order.gpus, "cpus": 1},
        loader={"actors": 1, "prefetch": 3},
        validation={"checkpoints": []},
        deterministic=True,
        compile=False,
        tracking={"uri": order.tracking_uri, "experiment": name, "upload_interval_s": 0},
        nnUNet_preprocessed=str(folder / "nnUNet_preprocessed"),
        nnUNet_results=str(folder / "nnUNet_results"),
    )


def on_node(node: str, task: Callable[..., Any], *arguments: Any) -> Any:
    """Run a small task on one node and return what it returns; a node that dies of it returns nothing."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(task).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return ray.get(remote.remote(*arguments), timeout=60)
    except ray.exceptions.RayTaskError as err:
        raise err.as_instanceof_cause() from err  # type: ignore[no-untyped-call]
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.RaySystemError):
        return f"node {node[:8]}"


def kill_process(pid: int, job: str) -> str:
    """SIGKILL a process that belongs to a job. Raises ClusterError if it does not: its number may be somebody else's by now."""
    process = psutil.Process(pid)
    if process.environ().get("NNFLEET_SUBMISSION_ID") != job:
        raise ClusterError(f"drill: process {pid} does not belong to {job}; it is left alone.")
    title = process.cmdline()[0][:60]
    process.kill()
    return f"process {pid} ({Path(title).name})"


def kill_raylet(job: str, is_sure: bool) -> str:
    """SIGKILL this node's raylet, which takes the node's work with it. Raises ConfigError when others work here, unless `is_sure`."""
    raylet = psutil.Process(os.getppid())
    if "raylet" not in raylet.name():
        raise ClusterError(f"drill: the parent of a task is {raylet.name()}, not Ray's daemon; nothing is killed.")
    others = []
    for process in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            title, owner = process.cmdline()[0], process.environ().get("NNFLEET_SUBMISSION_ID", "")
            if title.startswith("ray::") and "IDLE" not in title and owner != job and process.pid != os.getpid():
                others.append(f"{title.removeprefix('ray::')} {f'of {owner}' if owner else ''}".strip())
    if others and not is_sure:
        raise ConfigError(f"drill: other work runs on that node and would be lost: {', '.join(others[:5])}. Use --yes to accept that.")
    raylet.kill()
    return f"raylet {raylet.pid} with the workers of {job}"


def check_node(node: str) -> None:
    """Raise ConfigError for a node that may not be killed, or whose loss nobody could make up for."""
    nodes = {str(entry["NodeID"]): entry for entry in ray.nodes() if entry["Alive"]}  # type: ignore[no-untyped-call]
    if HEAD_RESOURCE in nodes[node]["Resources"]:
        raise ConfigError("drill: the worker runs on the head node, which is not killed: the cluster would end. Drill on more nodes.")
    rest = sum(float(entry["Resources"].get("CPU", 0)) for key, entry in nodes.items() if key != node)
    if rest < 2:
        raise ConfigError("drill: without that node the cluster has no resources for two workers: nothing could recover. Add a node.")


def kill_tracking(order: Order) -> str:
    """SIGKILL the local MLflow server with its workers."""
    assert order.mlflow is not None
    found = family(order.mlflow)
    for process in found:
        process.kill()
    return f"MLflow server {order.mlflow.pid}, {len(found)} processes"


def newest_claim(folder: RunFolder, role: str) -> TokenClaim:
    """The newest claim of a driver, or of rank 0 of its workers."""
    return [claim for claim in claims_seen(folder) if claim.role == role][-1]


def reached(folder: RunFolder) -> Committed:
    """The newest commit. Raises ClusterError when there is none."""
    committed = newest_committed(folder)
    if committed is None:
        raise ClusterError(f"drill: the run in {folder.root} has committed nothing.")
    return committed


def is_under_way(folder: RunFolder) -> bool:
    """True when the workers of the newest start train."""
    owner = owner_of(folder)
    return owner is not None and read_heartbeat(folder).fencing_token >= owner.fencing_token


def await_(condition: Callable[[], bool], what: str) -> None:
    """Return when it holds. Raises ClusterError when it does not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"drill: {what} within {PATIENCE_S:.0f} s. Are resources free on the cluster? See nnfleet status.")
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())

"""Chaos: a campaign of small runs on a cluster of several nodes, struck again and again, has to end as if nothing had happened.

`python -m benchmarks.chaos --faults 20 --seed 1`. The same campaign is trained undisturbed first; then every weight (SHA-256 over names
and bytes of tensors) and every deterministic measurement of the struck one must equal it, and MLflow must hold exactly what the run
folders hold. `tests/integration/test_chaos.py` is the short form.
"""

import argparse
import logging
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_faults import OF_TRACKING, RESTARTS_WORKERS, Faults, Strike, draw, file_names
from orchestrator import api
from orchestrator.errors import NnfleetError
from orchestrator.experiment.model import Experiment
from orchestrator.run.outcome import read_outcome
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import noted_run_id
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.plan_params import class_names
from orchestrator.tracking.records import epoch_metrics
from tests.integration.digests import reached, weights_digest
from tests.integration.local_home import toy_experiment
from tests.integration.many_nodes import ManyNodes
from tests.integration.mlflow_server import MlflowServer, client_of
from tests.toy import Toy, toy_dataset
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import newest_token
from trainers.contract.records import read_heartbeat
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState

PATIENCE_S = 240.0
"""For one recovery, and for one moment to come."""
POLL_S = 0.02


@dataclass(frozen=True)
class Setting:
    """How much of what."""

    faults: int = 20
    seed: int = 1
    runs: int = 3
    epochs: int = 16
    train_iterations: int = 40
    nodes: tuple[int, ...] = (1, 1, 1)
    """CPUs of the nodes: a gang of two spans two of them, the third is there when one dies."""
    kinds: tuple[str, ...] = ()
    """Only these faults; empty: all."""
    validation: tuple[str, ...] = ("best", "final")


@dataclass
class Row:
    """What became of one strike."""

    strike: Strike
    run: str
    struck: str = ""
    moment: str = ""
    recovery_s: float | None = None
    redone: float | None = None
    """Epochs, or parts of one, that were trained a second time."""
    first: float = 0.0
    """Where training went on, in epochs."""
    result: str = ""
    violations: list[str] = field(default_factory=list)


def experiment_of(toy: Toy, setting: Setting, results: Path, uri: str) -> Experiment:
    """The campaign: runs that differ by their seed, two workers each."""
    return toy_experiment(
        toy,
        results,
        name="chaos",
        seeds=list(range(setting.runs)),
        epochs=setting.epochs,
        train_iterations=setting.train_iterations,
        val_iterations=4,
        checkpoint={"every_minutes": 0.02} if setting.seed % 2 else {},
        validation={"checkpoints": list(setting.validation)},
        tracking={"uri": uri, "upload_interval_s": 0},
    )


class Watch:
    """What can be seen of one run from its folder."""

    def __init__(self, folder: RunFolder, epochs: int, iterations: int) -> None:
        self.folder, self._epochs, self._iterations = folder, epochs, iterations

    def committed(self) -> tuple[int, int]:
        """Position of the newest commit."""
        found = newest_committed(self.folder)
        return found.position if found else (0, 0)

    def position(self) -> float:
        """Where training is by its last commit, sign of life and pace, in epochs."""
        found, heartbeat = newest_committed(self.folder), read_heartbeat(self.folder)
        epoch, iteration = found.position if found else (0, 0)
        kept = epoch + iteration / self._iterations
        if heartbeat.fencing_token < self.fencing_token():  # starting up
            return kept
        told = heartbeat.epoch + (min(1.0, heartbeat.iteration / self._iterations) if heartbeat.phase == "train" else 1.0)
        last = found.history[-1] if found and found.history else None
        is_same_start = last is not None and last.fencing_token == heartbeat.fencing_token
        by_pace = epoch + min(1.0, (time.time() - last.ended_unix) / max(last.epoch_s, 0.1)) if last and is_same_start else 0.0
        return min(max(kept, told, by_pace), float(self._epochs))

    def heartbeat(self) -> tuple[int, float, tuple[Any, ...]]:
        """Attempt, time and place of the last sign of life."""
        heartbeat = read_heartbeat(self.folder)
        return heartbeat.fencing_token, heartbeat.unix, (heartbeat.epoch, heartbeat.iteration, heartbeat.phase)

    def fencing_token(self) -> int:
        """The newest attempt."""
        return newest_token(self.folder)

    def is_trained(self) -> bool:
        """True once its last epoch is committed."""
        return self.committed()[0] >= self._epochs

    def is_over(self) -> bool:
        """True once it has come to an end."""
        outcome = read_outcome(self.folder)
        return outcome is not None and (outcome.state == "SUCCEEDED" or outcome.is_failure)


class Chaos:
    """Follows the struck campaign from strike to strike."""

    def __init__(
        self, setting: Setting, cluster: ManyNodes, mlflow: MlflowServer, experiment: Experiment, tell: Callable[[str], None]
    ) -> None:
        self.setting, self.cluster, self.mlflow, self.tell = setting, cluster, mlflow, tell
        self.results = Path(str(experiment.nnUNet_results))
        submission = api.submit(experiment, cluster.address)
        self.campaign = submission.campaign_id
        self.keys = [row.run_key for row in submission.plan.rows]
        self.watches = [
            Watch(RunFolder(row.spec.run_folder), setting.epochs, setting.train_iterations) for row in submission.plan.rows if row.spec
        ]
        self.faults = Faults(cluster, mlflow, self.resume, lambda: f"campaign-{self.campaign}")
        self._mending: list[threading.Thread] = []
        """What brings back a tracking server: training goes on meanwhile, and is struck meanwhile too."""

    def resume(self) -> None:
        """`nnfleet resume`, as a person would call it; it waits by itself for old workers."""
        waits: list[str] = []
        submission = api.resume(results=self.results, cluster=self.cluster.address, on_wait=waits.append)
        self.campaign = submission.campaign_id
        if waits:
            self.tell(f"    resume waited: {waits[0]}")

    def run(self, strikes: Sequence[Strike]) -> list[Row]:
        """Strike, wait for recovery, and so on; a strike that falls into a start-up follows the one before at once."""
        rows: list[Row] = []
        is_cut = False
        for index, strike in enumerate(strikes):
            watch = self.watches[strike.run]
            row = Row(strike, f"run {strike.run}")
            rows.append(row)
            follower = strikes[index + 1] if index + 1 < len(strikes) else None
            is_hit_again = follower is not None and follower.run == strike.run and follower.moment == "start-up"
            is_cut = strike.kind == "state truncated" or (is_cut and strike.moment == "start-up")  # until a start has come through
            self._one(row, watch, is_hit_again=is_hit_again, is_cut=is_cut)
            self.tell(as_line(index, row))
            if any("no recovery" in text for text in row.violations):
                self.tell(self._state_of_things(watch))
                break
        self._all_mended()
        return rows

    def _one(self, row: Row, watch: Watch, *, is_hit_again: bool, is_cut: bool) -> None:
        strike = row.strike
        if not self._await_moment(strike, watch):
            row.result = "the run had ended before" if watch.is_trained() else "its moment did not come"
            row.violations += [] if watch.is_trained() else ["its moment did not come"]
            return
        committed, fencing_token, position = watch.committed(), watch.fencing_token(), watch.position()
        state = "validating" if watch.is_trained() else f"epoch {min(position, self.setting.epochs):.2f}"
        row.moment = f"{strike.moment}, {state}"
        if strike.kind in (*OF_TRACKING, "campaign", "head"):  # a campaign does not begin while its tracking server is away
            self._all_mended()
        found = self._struck(strike, watch)
        if found is None:
            row.result = "nothing was there to hit"
            row.violations.append("nothing was there to hit")
            return
        row.struck, mend = found
        struck = time.monotonic()
        struck_unix = time.time()
        mending = threading.Thread(target=self._mended, args=(row, mend))
        mending.start()
        if not is_hit_again:
            self._await_recovery(row, watch, fencing_token, struck, struck_unix, was_validating=strike.moment == "validation")
        self._mending.append(mending)
        if strike.kind not in OF_TRACKING:
            self._all_mended()
        if is_hit_again:
            row.result = "struck again in its start-up"
            return
        if row.violations or strike.moment == "validation":
            return
        resumed = watch.committed()
        row.redone = max(0.0, position - row.first) if strike.kind in RESTARTS_WORKERS and row.result == "trains on" else 0.0
        if resumed[0] + is_cut < committed[0]:
            row.violations.append(f"a committed state was lost: {committed} before, {resumed} after")

    def _all_mended(self) -> None:
        while self._mending:
            self._mending.pop().join()

    @staticmethod
    def _mended(row: Row, mend: Callable[[], None]) -> None:
        try:
            mend()
        except Exception as err:
            row.violations.append(f"what was taken did not come back: {type(err).__name__}: {err}")

    def _struck(self, strike: Strike, watch: Watch) -> tuple[str, Callable[[], None]] | None:
        """Strike as soon as there is something to hit; None if there is nothing for too long."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return self.faults.strike(strike, watch.folder)
            except LookupError:
                time.sleep(0.1)
        return None

    def _await_moment(self, strike: Strike, watch: Watch) -> bool:
        """Wait for it; False if the run is beyond it for good."""
        deadline = time.monotonic() + PATIENCE_S
        is_late: Callable[[], bool] = watch.is_over if strike.moment == "validation" else watch.is_trained
        come: Callable[[], bool] = {
            "epoch": lambda: watch.committed()[0] >= strike.epoch and watch.heartbeat()[0] >= watch.fencing_token(),
            "commit": lambda: watch.committed()[0] >= strike.epoch and watch.heartbeat()[0] >= watch.fencing_token(),
            "start-up": lambda: watch.heartbeat()[0] < watch.fencing_token() and self.faults.has_ranks(watch.folder),
            "validation": lambda: watch.is_trained() and self.faults.is_validating(watch.folder),
        }[strike.moment]
        while not come():
            if is_late() or time.monotonic() > deadline:
                return False
            time.sleep(POLL_S if strike.moment != "validation" else 0.2)
        if strike.moment == "epoch":
            time.sleep(strike.fraction * self._epoch_s(watch))
        if strike.moment == "validation":
            time.sleep(strike.fraction * 4)
        if strike.moment == "commit":
            before = file_names(watch.folder.state)
            while file_names(watch.folder.state) <= before and not is_late() and time.monotonic() < deadline:
                time.sleep(0.0005)
        return not is_late()

    def _await_recovery(
        self, row: Row, watch: Watch, fencing_token: int, struck: float, struck_unix: float, *, was_validating: bool
    ) -> None:
        """Until the next training step, or the result of a run that was validating."""
        deadline = struck + PATIENCE_S
        before = watch.heartbeat()
        needs_new_start = row.strike.kind in RESTARTS_WORKERS
        while time.monotonic() < deadline:
            now = watch.heartbeat()
            if was_validating or watch.is_trained():
                if row.strike.kind in OF_TRACKING and not was_validating:
                    row.recovery_s, row.result = time.monotonic() - struck, "trained to its end"
                    return
                if watch.is_over():
                    row.recovery_s, row.result = time.monotonic() - struck, "validated"
                    return
                if row.strike.kind.startswith("validation") and self.faults.is_validating(watch.folder, struck_unix):
                    row.recovery_s, row.result = time.monotonic() - struck, "validates on"
                    return
            elif (now[0] > fencing_token) if needs_new_start else (now[1] > struck_unix and now[2] != before[2]):
                row.recovery_s, row.result = max(0.0, now[1] - struck_unix), "trains on"
                row.first = float(int(now[2][0] or 0)) + min(1.0, int(now[2][1] or 0) / self.setting.train_iterations)
                return
            time.sleep(POLL_S)
        row.violations.append(f"no recovery within {PATIENCE_S:.0f} s")

    def _epoch_s(self, watch: Watch) -> float:
        found = newest_committed(watch.folder)
        return found.history[-1].epoch_s if found and found.history else 1.0

    def finish(self, limit_s: float) -> list[RunStatus]:
        """Wait for the campaign's end; a campaign that died is resumed once more."""
        deadline = time.monotonic() + limit_s
        while True:
            found = api.status(self.cluster.address, self.campaign)
            if found and all(item.state.is_final for item in found) and all(watch.is_over() for watch in self.watches):
                return found
            if time.monotonic() > deadline:
                return found
            time.sleep(1)

    def _state_of_things(self, watch: Watch) -> str:
        lines = []
        try:
            lines += [f"  {item.address} {item.state}: {item.reason}" for item in api.status(self.cluster.address)]
            lines.append("".join(api.logs(watch.folder.spec().run_key, self.cluster.address))[-4000:])
        except NnfleetError as err:
            lines.append(f"  the cluster does not answer: {err}")
        return "\n".join(lines)


def reference(setting: Setting, cluster: ManyNodes, toy: Toy, results: Path) -> list[RunFolder]:
    """The same campaign, undisturbed and untracked."""
    submission = api.submit(experiment_of(toy, setting, results, ""), cluster.address)
    done = api.wait(submission.campaign_id, cluster.address)
    assert all(item.state is RunState.SUCCEEDED for item in done), [item.reason for item in done]
    return [RunFolder(row.spec.run_folder) for row in submission.plan.rows if row.spec]


def curves(folder: RunFolder) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions: losses, Dice, EMA and learning rate per epoch. NaN equals itself here."""
    found = reached(folder)
    rows = [
        (r.epoch, r.train_loss, r.val_loss, *r.pseudo_dice, r.pseudo_dice_mean, r.ema_pseudo_dice, r.learning_rate) for r in found.history
    ]
    return [tuple("nan" if isinstance(v, float) and math.isnan(v) else v for v in row) for row in rows]


def differences(folder: RunFolder, unbroken: RunFolder, epochs: int) -> list[str]:
    """Where a struck run differs from the undisturbed one."""
    found = []
    ours, theirs = curves(folder), curves(unbroken)
    if [row[0] for row in ours] != list(range(epochs)):
        found.append(f"epochs {[row[0] for row in ours]}")
    found += [f"epoch {a[0]}: {a} is not {b}" for a, b in zip(ours, theirs, strict=False) if a != b]
    if weights_digest(folder) != weights_digest(unbroken):
        found.append(f"weights {weights_digest(folder)[:12]} are not {weights_digest(unbroken)[:12]}")
    best, other = reached(folder).best, reached(unbroken).best
    if (best and (best.epoch, best.ema_pseudo_dice)) != (other and (other.epoch, other.ema_pseudo_dice)):
        found.append(f"best {best} is not {other}")
    for name in ("best", "final"):
        ours_file, theirs_file = (f.own / f"validation_{name}.json" for f in (folder, unbroken))
        if theirs_file.exists() and (not ours_file.exists() or _scores(ours_file) != _scores(theirs_file)):
            found.append(f"scores of {name} differ or are missing")
    return found


def _scores(path: Path) -> Any:
    import json

    return json.loads(path.read_text()).get("dice_mean")


OF_THE_MACHINE = ("time/", "throughput/", "system/", "gpu/", "loader/", "attempt")
"""Metrics that may differ when an epoch is trained a second time; every other one is the same to the bit."""
Points = list[tuple[int, float]]
"""(epoch, value), in the order of epochs."""


def unlike(have: dict[str, Points], committed: dict[str, Points], *, was_cut: bool) -> list[str]:
    """Keys of MLflow whose points are not those committed: a missing one, one twice, another value.

    MLflow keeps the first version of an epoch. Where a commit was destroyed after its delivery (`was_cut`), the epoch is trained
    again, and MLflow's is of an earlier attempt: then what the machine measured may differ at that epoch, and nothing else.
    """
    first, last = (dict(points.get("attempt", [])) for points in (have, committed))
    redone = {epoch for epoch in first if was_cut and first[epoch] < last.get(epoch, 0)}

    def compared(key: str, points: Points) -> Points:
        return [point for point in points if not (key.startswith(OF_THE_MACHINE) and point[0] in redone)]

    return [
        f"MLflow's {key}: {have.get(key, [])} is not what was committed: {points}"
        for key, points in committed.items()
        if compared(key, have.get(key, [])) != compared(key, points)
    ]


def mlflow_differences(folder: RunFolder, uri: str, *, was_cut: bool) -> list[str]:
    """Where MLflow does not hold exactly what was committed (see `unlike`)."""
    from orchestrator.publishing.checkpoint_store import published

    tracker, run_id = Tracker(uri), noted_run_id(folder)
    wanted: dict[str, Points] = {}
    for record in epoch_metrics(reached(folder).history, class_names(folder.spec())):
        for key, value in record.values.items():
            wanted.setdefault(key, []).append((record.epoch, value))
    have = {key: sorted((p.step, p.value) for p in client_of(tracker).get_metric_history(run_id, key)) for key in wanted}
    found = unlike(have, wanted, was_cut=was_cut)
    for name, committed in (("best", reached(folder).best), ("final", reached(folder).final)):
        there = published(tracker, run_id, name)  # type: ignore[arg-type]
        if committed is None or there is None or there.manifest.sha256 != committed.sha256:
            found.append(f"MLflow's {name} checkpoint is not the committed one")
    run = client_of(tracker).get_run(run_id)
    if run.info.status != "FINISHED" or run.data.tags.get("nnfleet.state") != "SUCCEEDED":
        found.append(f"MLflow's run is {run.info.status}, state {run.data.tags.get('nnfleet.state')}")
    return found


def orphans(chaos: Chaos, limit_s: float) -> list[str]:
    """Processes that are left of nodes that died and of jobs that ended; a head's old nodes need a minute to notice."""
    deadline = time.monotonic() + limit_s
    while True:
        left = [f"{p.pid} of a dead node" for p in chaos.cluster.leftovers()]
        left += [f"{p.pid} of {job}" for p, job in chaos.faults.of_jobs() if job.startswith(("train-", "validate-")) and not is_rays(p)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1)


def is_rays(process: psutil.Process) -> bool:
    """True for actors that Ray Train keeps for the whole cluster, whichever job was the first to need them."""
    try:
        return any(name in process.cmdline()[0] for name in ("TrainStateActor", "_AutoscalingCoordinatorActor"))
    except (psutil.Error, IndexError):
        return True


def play(setting: Setting, place: Path, tell: Callable[[str], None] = print) -> tuple[list[Row], list[str]]:
    """The whole of it; returns the table and every violation."""
    began = time.monotonic()
    toy = toy_dataset(place / "data")
    mlflow = MlflowServer(place / "mlflow")
    starting = threading.Thread(target=mlflow.start)
    starting.start()
    try:
        with ManyNodes(place / "cluster", setting.nodes) as cluster:
            unbroken = reference(setting, cluster, toy, place / "unbroken")
            tell(f"reference: {setting.runs} runs undisturbed, {time.monotonic() - began:.0f} s with the start of the cluster")
            starting.join()
            chaos = Chaos(setting, cluster, mlflow, experiment_of(toy, setting, place / "struck", mlflow.uri), tell)
            rows = chaos.run(draw(setting.seed, setting.faults, setting.runs, setting.epochs, setting.kinds))
            statuses = chaos.finish(PATIENCE_S)
            violations = [f"{row.run}, {row.strike.kind}: {text}" for row in rows for text in row.violations]
            violations += [f"{s.address} seed: {s.state}: {s.reason}" for s in statuses if s.state is not RunState.SUCCEEDED]
            for number, (watch, whole) in enumerate(zip(chaos.watches, unbroken, strict=True)):
                was_cut = any(row.strike.kind == "state truncated" and row.strike.run == number and row.struck for row in rows)
                if watch.is_trained():
                    found = differences(watch.folder, whole, setting.epochs)
                    found += mlflow_differences(watch.folder, mlflow.uri, was_cut=was_cut)
                    violations += [f"run {number}: {text}" for text in found]
                else:
                    violations.append(f"run {number} is not trained to its end: {watch.committed()}")
            violations += [f"left over: {text}" for text in orphans(chaos, 90)]
            violations += [f"open in MLflow: {run.run_key}" for run in Tracker(mlflow.uri).open_runs()]
    finally:
        starting.join()
        mlflow.kill()
    struck = sum(row.recovery_s is not None or "again" in row.result for row in rows)
    tell(f"{struck} of {len(rows)} faults struck, {len(violations)} violations, {time.monotonic() - began:.0f} s in all")
    return rows, violations


def as_line(index: int, row: Row) -> str:
    """One strike as a row of the table."""
    seconds = "-" if row.recovery_s is None else f"{row.recovery_s:.1f}"
    redone = "-" if row.redone is None else f"{row.redone:.2f}"
    result = "; ".join([row.result, *row.violations])
    return f"| {index + 1} | {row.strike.kind} | {row.run} | {row.moment} | {seconds} | {redone} | {result} | {row.struck} |"


HEADER = "| # | fault | run | moment | seconds to recovery | epochs redone | result | what was struck |\n|---|---|---|---|---|---|---|---|"


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form; the exit code is 0 if nothing was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=Setting.faults)
    parser.add_argument("--seed", type=int, default=Setting.seed)
    parser.add_argument("--runs", type=int, default=Setting.runs)
    parser.add_argument("--epochs", type=int, default=Setting.epochs)
    parser.add_argument("--only", default="", help="faults to draw from, separated by commas")
    options = parser.parse_args(arguments)
    kinds = tuple(filter(None, options.only.split(",")))
    setting = Setting(faults=options.faults, seed=options.seed, runs=options.runs, epochs=options.epochs, kinds=kinds)
    logging.getLogger("trainers.contract.commits").setLevel(logging.ERROR)  # a state that was cut is looked at many times a second
    place = Path(tempfile.mkdtemp(prefix="nnf-chaos-"))
    print(HEADER)
    _, violations = play(setting, place, lambda text: print(text, flush=True))
    for text in violations:
        print(f"VIOLATION {text}")
    print(f"everything lies in {place}")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())

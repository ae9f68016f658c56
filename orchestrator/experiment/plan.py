"""From an experiment to its runs, and from runs and a cluster to the plan that is shown before anything is submitted.

`expand` needs the data and runs where they are; `plan_report` adds what a cluster has to offer. What the report holds is what submit sends.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.dataset.outdated import outdated_cases
from orchestrator.experiment.estimates import Measured
from orchestrator.experiment.halving import halving_sentences, unlike_patches
from orchestrator.experiment.published import published_hours, published_of
from orchestrator.experiment.storage import run_bytes
from orchestrator.queue.admission import schedule
from orchestrator.queue.gang_fit import Fit, FitWhen, NodeResources, Reservation, describe, fit
from orchestrator.queue.order import Waiting
from orchestrator.run.job_record import HandedRun
from orchestrator.run.progress import Progress, progress_of
from orchestrator.run.write_access import refuse_unwritable
from trainers.contract.plans import plans_of
from trainers.contract.run_spec import NOT_EXACT, Frozen, RunSpec
from trainers.contract.split_batch import rank_sizes
from trainers.storage.mounts import LOCAL, file_system_of, is_linkless

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment


class PlanRow(Frozen):
    """One run as it would be submitted."""

    run_key: str
    address: str
    fold: int | str
    seed: int
    workers: int
    """Ranks; of an elastic run the fewest."""
    batch_per_rank: tuple[int, ...]
    """Samples of the global batch on each of `workers` ranks."""
    resources: str
    """What the gang asks of the cluster, in words."""
    n_train: int
    """Training cases."""
    n_val: int
    """Validation cases."""
    epochs: int
    iterations: int
    """Training iterations per epoch."""
    progress: Progress = Field(alias="standing")
    fits: FitWhen
    because: str
    """Why it fits now, later or never."""
    spec: RunSpec
    """The very specification that submit sends."""
    most_workers: int | None = None
    """Ranks of an elastic run at most; null: their number is fixed."""
    batch_per_rank_of_most: tuple[int, ...] = ()
    """Samples of the global batch on each of `most_workers` ranks; empty: their number is fixed."""
    training_s: float | None = None
    """Expected seconds of the epochs that are left, by what epochs of the same model took on as many such workers; null: not known."""

    disk_bytes: int | None = None
    """What its folder will take once it has ended (see `run_bytes`); null: not known."""
    measured_on: str = ""
    """Kind of device that those epochs were measured on; empty: not known."""
    limited_by: str = Field("", exclude_if=lambda name: not name)
    """What is expected to limit the training, by those epochs and the loaders of this run; empty: not known."""
    limit_text: str = Field("", exclude_if=lambda text: not text)
    """The same in a sentence, with the loader actors that are enough and what to change."""
    gpu_memory_gib: float | None = None
    """Peak memory of a worker's GPU in those epochs; null: not known, or on CPUs."""
    published_h: float | None = Field(None, exclude_if=lambda hours: hours is None)
    """Where `training_s` is not known: hours on one A100 by what nnU-Net's authors report of such plans; null: not reported."""
    published_gb: float | None = Field(None, exclude_if=lambda size: size is None)
    """Likewise GB of the GPU's memory."""

    @property
    def gpu_hours(self) -> float | None:
        """Expected GPU-hours of its training; None: not known. On CPUs it takes none."""
        return None if self.training_s is None else self.training_s / 3600 * self.workers * self.spec.workers.gpus


class PlanReport(Frozen):
    """Everything that `submit` would send, in the order of submission."""

    experiment: str
    cluster: str
    rows: tuple[PlanRow, ...]
    n_now: int
    n_later: int
    n_never: int
    n_finished: int
    """Finished runs are counted here only."""
    warnings: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    """Runs that `resume` found and leaves as they are, each with the reason."""
    estimate_errors: tuple[float, ...] = ()
    """By how much of the expectation the last runs of these models took longer, oldest first; empty: none has recorded it."""
    cost_per_gpu_hour: float | None = None
    """As the experiment names it."""
    preprocesses: tuple[str, ...] = ()
    """Configurations, each with its plans, that are preprocessed before any run can be planned; then there are no rows yet."""
    awaited: tuple[HandedRun, ...] = ()
    """The runs that are planned once that is done."""
    never_awaited: str = Field("", exclude_if=lambda because: not because)
    """Why the cluster can never hold any of these; empty: it can, now or later."""
    preprocessed_by: str = Field("", exclude_if=lambda campaign: not campaign)
    """The campaign that has the dataset preprocessed already, which is waited for; empty: none does."""
    followed: tuple[str, ...] = Field((), exclude_if=lambda campaigns: not campaigns)
    """Campaigns that are at work on runs of this plan: these runs are followed, and none is trained twice."""
    halving: tuple[str, ...] = Field((), exclude_if=lambda sentences: not sentences)
    """What successive halving does with the runs, and did before."""
    file_system: str = ""
    """What the results lie on where that is no local disk: `nfs4`, `cifs`, `fuse.sshfs`."""

    def to_json(self, *, indent: int | None = 1) -> str:
        """The report as JSON; `PlanReport.model_validate_json` reads it back."""
        return self.model_dump_json(indent=indent)


@dataclass(frozen=True)
class Queue:
    """Who is on the cluster before the planned runs."""

    reserved: Sequence[Reservation] = ()
    waiting: Sequence[Waiting] = ()
    living: Collection[str] = ()
    """Keys of runs that have a living job."""
    campaigns: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By living campaign the keys of the runs that it has not brought to their end."""


def plan_report(
    experiment: "Experiment",
    specs: Sequence[RunSpec],
    nodes: Sequence[NodeResources],
    queue: Queue | None = None,
    cluster: str = "local",
    warnings: Sequence[str] = (),
) -> PlanReport:
    """The plan of `specs` (from `expand`) on a cluster: decided as their campaign will decide, behind everything that waits already.

    Raises DataError when a run that is to start may not write its folder.
    """
    warnings = (*warnings, *outdated_cases(specs, experiment.with_folders_resolved(required=False).nnUNet_raw))
    report = plan_of_runs(experiment.name, specs, nodes, queue, cluster, warnings)
    report = report.model_copy(update={"cost_per_gpu_hour": experiment.cost_per_gpu_hour})
    for row in report.rows:
        if row.progress.stage != "finished" and row.run_key not in (queue or Queue()).living:
            refuse_unwritable(row.spec)
    return report


def plan_of_runs(
    name: str,
    specs: Sequence[RunSpec],
    nodes: Sequence[NodeResources],
    queue: Queue | None = None,
    cluster: str = "local",
    warnings: Sequence[str] = (),
    left: Sequence[str] = (),
) -> PlanReport:
    """Likewise for runs of several experiments; `name` stands for what they have in common."""
    queue = queue or Queue()
    progress_by_key = {spec.run_key: progress_of(spec) for spec in specs}
    fits = {spec.run_key: Fit("now", "nothing to submit.") for spec in specs if progress_by_key[spec.run_key].stage == "finished"}
    fits |= {spec.run_key: Fit("now", "runs already: it is followed.") for spec in specs if spec.run_key in queue.living}
    dependent = {spec.run_key: needs for spec in specs if spec.run_key not in fits and (needs := _needs(spec, progress_by_key))}
    wanted = [
        Waiting(
            run_key=s.run_key,
            address=s.address,
            campaign="",
            workers=s.gang,
            since_unix=math.inf,
            position=n,
            user=s.user,
            priority=s.priority,
        )
        for n, s in enumerate(specs)
        if s.run_key not in fits and s.run_key not in dependent
    ]
    asked = {spec.run_key: spec.gang for spec in specs}  # what a run that waits already will take once this is submitted
    waiting = [each.model_copy(update={"workers": asked.get(each.run_key, each.workers)}) for each in queue.waiting]
    fits |= schedule([*waiting, *wanted], nodes, queue.reserved, time.time())
    fits |= {s.run_key: _later(fit(s.gang, nodes), dependent[s.run_key]) for s in specs if s.run_key in dependent}
    kinds = sorted({file_system_of(spec.model_folder) for spec in specs} - {"", *LOCAL})
    measured = Measured()
    rows = [_row(spec, progress_by_key[spec.run_key], fits[spec.run_key], measured) for spec in specs]
    open_rows = [row for row in rows if row.progress.stage != "finished"]
    counts = {when: sum(row.fits == when for row in open_rows) for when in ("now", "later", "never")}
    return PlanReport(
        experiment=name,
        cluster=cluster,
        rows=tuple(rows),
        n_now=counts["now"],
        n_later=counts["later"],
        n_never=counts["never"],
        n_finished=len(rows) - len(open_rows),
        warnings=(*warnings, *_doubts(specs), *unlike_patches(specs), *_doubts_of_storage(kinds)),
        halving=tuple(halving_sentences(specs)),
        left=tuple(left),
        file_system=", ".join(kinds),
        followed=tuple(sorted(name for name, keys in queue.campaigns.items() if any(row.run_key in keys for row in open_rows))),
        estimate_errors=tuple(measured.errors()),
    )


def _needs(spec: RunSpec, progress_by_key: Mapping[str, Progress]) -> int:
    """How many unfinished runs of the plan a run needs the segmentations of."""
    keys = spec.previous_stage.run_keys if spec.previous_stage else ()
    return sum(key in progress_by_key and progress_by_key[key].stage != "finished" for key in keys)


def _later(alone: Fit, needs: int) -> Fit:
    """When a run fits that has to wait for others, from when it fits an empty cluster."""
    return alone if alone.when == "never" else Fit("later", f"waits for the segmentations of {needs} runs of its previous stage.")


def _doubts(specs: Sequence[RunSpec]) -> list[str]:
    """What is allowed and yet seldom meant."""
    elastic = sorted({spec.address for spec in specs if spec.deterministic and spec.workers.is_elastic})
    bits = [f"deterministic: the same bits are promised for a fixed number of workers; that of {elastic[0]} may change."] if elastic else []
    leaks = {spec.fold: shared for spec in specs if spec.fold != "all" and (shared := sorted({*spec.train_cases} & {*spec.val_cases}))}
    classes = sorted({spec.trainer for spec in specs if spec.inexactness})
    exact = [f"trainers: {', '.join(classes)}: {NOT_EXACT}"] if classes else []
    return (
        exact
        + bits
        + [
            f"folds: {len(shared)} cases of fold {fold} are in training and in validation ({shared[0]}, ...): their Dice is no test."
            for fold, shared in leaks.items()
        ]
    )


def _doubts_of_storage(kinds: Sequence[str]) -> list[str]:
    return [
        f"results: they lie on {kind}, which may make no hard links and sync no folders: then checkpoints take their space twice, and a "
        "power cut of its server may cost the newest state."
        for kind in kinds
        if is_linkless(kind)
    ]


def _epochs_left(spec: RunSpec, progress: Progress) -> int:
    return max(0, spec.schedule.epochs - progress.epochs_done) if progress.epochs_left is None else progress.epochs_left


def _row(spec: RunSpec, progress: Progress, outcome: Fit, known: Measured) -> PlanRow:
    measured, limit = known.epoch_time(spec), known.limit(spec)
    most = spec.workers.most if spec.workers.is_elastic else None
    plans, epochs_left = plans_of(spec), _epochs_left(spec, progress)
    batch_size = int(plans.configuration(spec.configuration)["batch_size"])
    published = None if measured else published_of(spec, plans)
    return PlanRow(
        run_key=spec.run_key,
        address=spec.address,
        fold=spec.fold,
        seed=spec.seed,
        workers=spec.workers.least,
        batch_per_rank=tuple(rank_sizes(batch_size, spec.workers.least)),
        resources=describe(spec.gang),
        n_train=len(spec.train_cases),
        n_val=len(spec.val_cases),
        epochs=spec.schedule.epochs,
        iterations=spec.schedule.train_iterations,
        progress=progress,
        fits=outcome.when,
        because=outcome.because,
        spec=spec,
        most_workers=most,
        training_s=None if measured is None else epochs_left * measured.epoch_s,
        measured_on=measured.device if measured else "",
        limited_by=limit.name if limit else "",
        limit_text=limit.beforehand if limit else "",
        gpu_memory_gib=(measured.gpu_memory_gib or None) if measured else None,
        published_h=published_hours(published, spec, epochs_left) if published else None,
        published_gb=published.memory_gb if published else None,
        disk_bytes=run_bytes(spec),
        batch_per_rank_of_most=tuple(rank_sizes(batch_size, most)) if most else (),
    )

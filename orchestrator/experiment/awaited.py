"""The plan of an experiment whose data have to be preprocessed first: which runs it will be, before their keys can be computed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from orchestrator.experiment.model import Experiment
from orchestrator.experiment.plan import PlanReport
from orchestrator.queue.gang_fit import NodeResources, fit
from orchestrator.run.job_record import HandedRun
from orchestrator.run.names import UNPLANNED
from trainers.contract.cascade import model_folder_name
from trainers.contract.run_spec import gang_of, model_address


def plan_to_come(
    experiment: Experiment, dataset: str, due: Sequence[str], nodes: Sequence[NodeResources] | None, cluster: str = "local"
) -> PlanReport:
    """A plan without rows: what is `due` of a dataset is preprocessed first. `awaited` are its runs, named by where they will lie; what
    each asks for is known already, and whether the cluster can ever hold it, unless its `nodes` are not known (None).

    The experiment's folders are known. Pure.
    """
    awaited = tuple(_awaited(experiment, dataset))
    alone = None if nodes is None else fit(gang_of(experiment.workers, experiment.loader), nodes)
    never = alone.because if alone is not None and alone.when == "never" else ""
    return PlanReport(
        experiment=experiment.name,
        cluster=cluster,
        rows=(),
        n_now=0,
        n_later=0,
        n_never=len(awaited) if never else 0,
        n_finished=0,
        preprocesses=tuple(due),
        awaited=awaited,
        never_awaited=never,
    )


def _awaited(experiment: Experiment, dataset: str) -> list[HandedRun]:
    results = experiment.nnUNet_results
    assert results is not None
    found = []
    variants = {trainer: experiment.variants(trainer) for trainer in experiment.trainer_names}
    for number in range(experiment.num_variants):
        for plans, configuration, trainer, seed, fold in experiment.axes():
            variant = variants[trainer][number]
            model = model_folder_name(trainer, plans, configuration, variant.name, seed)
            address = f"{model_address(dataset, configuration, trainer, plans, variant.name, seed)}/{fold}"
            folder = results / dataset / model / f"fold_{fold}"
            found.append(_run(experiment, address, variant.schedule.epochs, folder))
    return found


def _run(experiment: Experiment, address: str, epochs: int, folder: Path) -> HandedRun:
    return HandedRun(
        run_key=f"{UNPLANNED}{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}",
        address=address,
        epochs=epochs,
        run_folder=folder,
        workers=gang_of(experiment.workers, experiment.loader),
        priority=experiment.priority,
        user=experiment.user,
    )

"""The product's jobs, and its command, with moments noted: `benchmarks.start` has them started in the place of the product's own.

Which one a process is, its submission id names; one without is the command itself. Nothing else differs from the product.
"""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.recovery import Marks, note_return, our_worker

if TYPE_CHECKING:
    from trainers.contract.states import TrainingEnd

MARKS_VARIABLE = "NNFLEET_BENCHMARK_MARKS"
"""In the environment of the services, hence of all jobs: the file of moments."""


def marks_here() -> Marks:
    """The file of moments of this process."""
    return Marks(Path(os.environ[MARKS_VARIABLE]))


def command(marks: Marks) -> int:
    """`nnfleet`, whose jobs note moments too."""
    from orchestrator.cluster import jobs

    own = "benchmarks.start_job"
    original = jobs.Modules
    jobs.Modules = lambda: original(campaign=own, training=own, validation=own)  # type: ignore[assignment,misc] # of this process alone
    import orchestrator.cli

    note_return(marks, jobs.Jobs, "submit_campaign", "job server has the campaign")
    orchestrator.cli.main()
    return 0


def campaign(marks: Marks) -> int:
    """The campaign's job."""
    from orchestrator.campaign import job, loop
    from orchestrator.cluster import jobs

    marks.put("campaign imports")
    note_return(marks, loop.Campaign, "open", "campaign owns its runs")
    note_return(marks, jobs.Jobs, "submit_training", "training submitted")
    return job.main()


def training(marks: Marks) -> int:
    """The training job's driver; its rank 0 notes moments too."""
    from benchmarks import start_job

    driver: Any = importlib.import_module("orchestrator.training.driver")
    marks.put("driver imports")
    note_return(marks, driver.ray, "init", "driver joined Ray")
    note_return(marks, driver, "preflight", "preflight")
    note_return(marks, driver, "trainer", "trainer made")
    note_return(marks, driver, "run_workers", "Ray Train ended")
    note_return(marks, driver, "hand_over", "validation submitted")
    driver.train_worker = start_job.worker
    code = driver.main()
    marks.put("driver ends")
    return int(code)


def worker(config: dict[str, Any]) -> "TrainingEnd":
    """The product's worker; rank 0 notes when its parts return, and its end."""
    import ray.train

    end = our_worker({**config, "marks": os.environ[MARKS_VARIABLE]})
    if ray.train.get_context().get_world_rank() == 0:
        marks_here().put("training ended")
    return end


def validation(marks: Marks) -> int:
    """The validation job, whose workers note moments too."""
    from orchestrator.validation import worker_pool

    job: Any = importlib.import_module("orchestrator.validation.job")
    marks.put("validation imports")
    note_return(marks, job.ray, "init", "validation joined Ray")
    note_return(marks, worker_pool.Pool, "_give_next", "first worker is ready")
    note_return(marks, job, "validate", "cases done")
    note_return(marks, job, "deliver_all", "delivered")
    note_return(marks, job, "stored", "outcome stored")
    worker_pool.Pool.actor_class = lambda self: _marked_case_worker()  # type: ignore[method-assign]
    code = job.main()
    marks.put("validation job ends")
    return int(code)


def _marked_case_worker() -> type:
    from orchestrator.validation.case_worker import CaseWorker

    class Marked(CaseWorker):
        def __init__(self, *arguments: Any) -> None:
            marks_here().put("case worker begins")
            super().__init__(*arguments)

        def load(self, *arguments: Any) -> str:
            place = super().load(*arguments)
            marks_here().put("network loaded")
            return place

        def validate(self, case_id: str) -> Any:
            import torch

            modules: Any = torch.nn.Module
            began, forward_s, called = time.perf_counter(), 0.0, modules.__call__

            def timed(module: Any, *inputs: Any, **named: Any) -> Any:  # the outermost module alone: the network
                nonlocal forward_s
                modules.__call__ = called
                start = time.perf_counter()
                try:
                    return called(module, *inputs, **named)
                finally:
                    forward_s += time.perf_counter() - start
                    modules.__call__ = timed

            modules.__call__ = timed
            try:
                return super().validate(case_id)
            finally:
                modules.__call__ = called
                marks_here().put(f"case {time.perf_counter() - began:.4f} {forward_s:.4f}")

    return Marked


def main() -> int:
    """The job or command that this process is."""
    marks = marks_here()
    kind = os.environ.get("NNFLEET_SUBMISSION_ID", "").partition("-")[0]
    marks.put(f"{kind or 'command'} begins")
    own = importlib.import_module("benchmarks.start_job")  # not `__main__`, which workers could not import
    jobs = {"": own.command, "campaign": own.campaign, "train": own.training, "validate": own.validation}
    return int(jobs[kind](marks))


if __name__ == "__main__":
    sys.exit(main())

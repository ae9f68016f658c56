"""What a run's folder already holds: nothing, some epochs, a trained model, a finished run."""

from typing import Literal

from orchestrator.run.outcome import read_outcome
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen, RunSpec

Stage = Literal["new", "continues", "validates", "finished"]


class Progress(Frozen):
    """What a run's folder already holds."""

    stage: Stage
    """new; continues (after `epochs_done`); validates (trained, its full validation remains); finished (nothing is left to do)."""
    epochs_done: int = 0

    @property
    def text(self) -> str:
        """`new`, `continues from epoch 3`, ..."""
        return {
            "new": "new",
            "continues": f"continues from epoch {self.epochs_done}",
            "validates": "trained: validation remains",
            "finished": "finished: skipped",
        }[self.stage]


def progress_of(spec: RunSpec) -> Progress:
    """What the run folder of `spec` already holds (reads the folder)."""
    folder = RunFolder(spec.run_folder)
    committed = newest_committed(folder)
    if committed is None or committed.run_key != spec.run_key:
        return Progress(stage="new")
    done = committed.epochs_done
    if done < spec.schedule.epochs or committed.final is None:
        return Progress(stage="continues", epochs_done=done)
    outcome = read_outcome(folder)
    validated = outcome is not None and outcome.state == "SUCCEEDED"
    validated = validated and all((folder.validation(name) / "summary.json").is_file() for name in spec.validation.checkpoints)
    return Progress(stage="finished" if validated else "validates", epochs_done=done)

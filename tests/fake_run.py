"""A run folder whose committed states are written by hand: what a training leaves behind, without training."""

import random
from hashlib import sha256
from pathlib import Path

from orchestrator.run.job_record import JobKind, JobRecord, JobState
from trainers.contract.commits import BestRecord, Committed, EpochRow, Manifest, state_stem
from trainers.contract.early_end import EarlyEnd
from trainers.contract.fencing import acquire_token
from trainers.contract.names import Fold
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec, WorkerSpec
from trainers.storage.files import write_atomic, write_json_atomic

CLASSES = ("left kidney", "tumour (solid)")


def job_record(
    kind: JobKind = "train", state: JobState = "RUNNING", *, n: int = 1, code: int | None = None, started: float = 10
) -> JobRecord:
    """The `n`-th job of the run `r`, which reserves a GPU."""
    return JobRecord(
        submission_id=f"{kind}-r-a{n}",
        kind=kind,
        state=state,
        run_key="r",
        job_number=n,
        reserved=WorkerSpec(count=1, gpus=1, cpus=4),
        exit_code=code,
        started_unix=started,
    )


def epoch_row(epoch: int, ema: float | None = 0.5, fencing_token: int = 1, dice: tuple[float, ...] = (0.5, float("nan"))) -> EpochRow:
    """One epoch with made-up measurements; the second class was in no patch."""
    return EpochRow(
        epoch=epoch,
        fencing_token=fencing_token,
        started_unix=1.7e9 + 10 * epoch,
        ended_unix=1.7e9 + 10 * epoch + 9.5,
        train_loss=1.0 / (epoch + 1),
        val_loss=1.5 / (epoch + 1),
        pseudo_dice=dice,
        pseudo_dice_mean=0.5,
        ema_pseudo_dice=ema,
        learning_rate=0.01,
        world_size=2,
        epoch_s=9.5,
        train_s=7.0,
        val_s=2.0,
        wait_data_s=0.1,
        save_s=0.2,
        samples_per_s=12.0,
        gpu_memory_gib=0.0,
    )


class FakeRun:
    """Writes a run folder below `base`; verbs advance it as a training would."""

    def __init__(self, base: Path, run_key: str = "901-toy-0", fold: Fold = 0, **overrides: object) -> None:
        data = base / "preprocessed" / "Dataset901_Toy"
        self._write_dataset(data)
        self.spec = RunSpec.model_validate(
            {
                "run_key": run_key,
                "dataset": "Dataset901_Toy",
                "preprocessed_folder": data,
                "model_folder": base / "results" / "Dataset901_Toy" / "nnUNetTrainer__nnUNetPlans__3d_fullres",
                "plans": "nnUNetPlans",
                "configuration": "3d_fullres",
                "trainer": "nnUNetTrainer",
                "fold": fold,
                "train_cases": ("case_0", "case_1"),
                "val_cases": ("case_2",),
                "data_digest": sha256(b"toy").hexdigest(),
                "upload_interval_s": 0.0,
                **overrides,
            }
        )
        self.folder = RunFolder(self.spec.run_folder)
        write_json_atomic(self.folder.spec_file, self.spec.model_dump(mode="json"))
        self.fencing_token = acquire_token(self.folder, "driver-1")
        self.best: Manifest | None = None
        self.final: Manifest | None = None
        self.rows: list[EpochRow] = []
        self.early_end: EarlyEnd | None = None

    @staticmethod
    def _write_dataset(data: Path) -> None:
        configuration = {"patch_size": [32, 48, 64], "batch_size": 2, "spacing": [3.0, 1.0, 1.0], "architecture": {"arch_kwargs": {}}}
        write_json_atomic(data / "nnUNetPlans.json", {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}})
        labels = {"background": 0, CLASSES[0]: 1, CLASSES[1]: 2}
        write_json_atomic(data / "dataset.json", {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
        write_json_atomic(data / "splits_final.json", [{"train": ["case_0", "case_1"], "val": ["case_2"]}])

    def track(self, tracking_uri: str, run_id: str) -> None:
        """Note the MLflow run, as the campaign does."""
        write_json_atomic(self.folder.mlflow_file, {"run_id": run_id, "experiment_id": "1", "tracking_uri": tracking_uri})

    def resume(self, driver: str = "driver-2") -> None:
        """Claim the next attempt, by another driver."""
        self.fencing_token = acquire_token(self.folder, driver)

    def epoch(self, size_bytes: int = 10_000, is_best: bool = True) -> Committed:
        """Train and commit one epoch; by default it is the best so far."""
        number = len(self.rows)
        ema = 0.5 + 0.001 * number if is_best else 0.1
        self.rows.append(epoch_row(number, ema, self.fencing_token))
        if is_best:
            self.best = self._checkpoint("best", number, ema, size_bytes)
        return self.commit()

    def finish(self, size_bytes: int = 10_000) -> Committed:
        """Write the final checkpoint."""
        self.final = self._checkpoint("final", len(self.rows) - 1, self.rows[-1].ema_pseudo_dice if self.rows else None, size_bytes)
        return self.commit()

    def end_early(self, anneal_epochs: int = 0) -> Committed:
        """End after the epochs so far, as somebody asked; the last `anneal_epochs` of them were annealed."""
        done = len(self.rows)
        self.early_end = EarlyEnd(epochs=done, anneal_from=done - anneal_epochs, anneal_epochs=anneal_epochs)
        return self.finish()

    def commit(self) -> Committed:
        """Commit what was reached."""
        committed = Committed(
            run_key=self.spec.run_key,
            epochs_done=len(self.rows),
            fencing_token=self.fencing_token,
            history=tuple(self.rows),
            early_end=self.early_end,
            best_policy=BestRecord(),
            best=self.best,
            final=self.final,
            state_sha256="0" * 64,
            state_size_bytes=0,
        )
        path = self.folder.state / f"{state_stem(committed.epochs_done, self.fencing_token)}.json"
        write_atomic(path, committed.model_dump_json().encode())
        return committed

    def _checkpoint(self, name: CheckpointName, epoch: int, ema: float | None, size_bytes: int) -> Manifest:
        content = random.Random(f"{name}{epoch}{self.fencing_token}").randbytes(size_bytes)
        beside = self.folder.best / f"{state_stem(epoch, self.fencing_token)}.pth"
        path = beside if name == "best" else self.folder.checkpoint("final")
        write_atomic(path, content)
        return Manifest(
            checkpoint=name,
            file=str(path.relative_to(self.folder.root)),
            epoch=epoch,
            fencing_token=self.fencing_token,
            ema_pseudo_dice=ema,
            sha256=sha256(content).hexdigest(),
            size_bytes=size_bytes,
        )

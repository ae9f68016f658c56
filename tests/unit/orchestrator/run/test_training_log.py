"""What a run's jobs printed, as people read it."""

from pathlib import Path

from orchestrator.run.training_log import own_lines, stored_logs
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_atomic

PRINTED = (
    "2026-11-29 09:23:35,373\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    "Running entrypoint for job train-k-a1: python -m orchestrator.training.driver /r/fold_1 --job-number 1\n"
    "\x1b[33m(raylet)\x1b[0m WARNING: 8 PYTHON worker processes have been started on node: 7e9d with address: 127.0.0.1\n"
    "\x1b[36m(TrainController pid=20592)\x1b[0m [2026-11-29 09:26:09,153 E 20592 20774] core_worker.cc:2465: Actor with class name\n"
    "\x1b[36m(autoscaler +5s)\x1b[0m Tip: use `ray status` to view detailed cluster status.\n"
    "\x1b[33m(raylet)\x1b[0m 2 Workers killed due to memory pressure (OOM), 0 Workers crashed due to other reasons\n"
    "\x1b[36m(TrainController pid=20592)\x1b[0m no capacity for the workers yet, they wait: placement\n"
    "\x1b[36m(RayTrainWorker pid=21175)\x1b[0m epoch 0: train_loss 1.3005\n"
    "2026-11-29 09:26:52,881 INFO __main__: full validation of best: 2 of 2 cases to do\n"
    'NNFLEET {"event": "done", "message": "trained"}\n'
    "trained after 3 epochs"
)


def test_lines_that_ray_prints_of_itself_are_left_out_and_ours_stay() -> None:
    *ours, last = own_lines(PRINTED).splitlines()
    assert [line.split("\x1b[0m ")[-1].split(":")[0] for line in ours] == [
        "2 Workers killed due to memory pressure (OOM), 0 Workers crashed due to other reasons",
        "no capacity for the workers yet, they wait",
        "epoch 0",
        "2026-11-29 09",
    ]
    assert last == "trained after 3 epochs"


def test_the_validations_of_the_newest_training_follow_its_log(tmp_path: Path) -> None:
    (tmp_path / "training_log_1.txt").write_text("epoch 0\n")
    assert list(stored_logs(tmp_path)) == ["epoch 0\n"]
    for job in ("train-k-a1", "validate-k-a1", "train-k-a2", "validate-k-a2-r10", "validate-k-a2-r2", "validate-k-a2"):
        write_atomic(RunFolder(tmp_path).job_log(job), f"{PRINTED.splitlines()[0]}\n{job}\n".encode())
    shown = "".join(stored_logs(tmp_path))
    assert shown == "epoch 0\nvalidate-k-a2\nvalidate-k-a2-r2\nvalidate-k-a2-r10\n"
    write_atomic(RunFolder(tmp_path).job_log("train-k-a3"), b"it goes on")
    assert "".join(stored_logs(tmp_path)) == "epoch 0\n", "the newest training is not validated yet"


def test_kept_logs_are_whole_only_where_all_logs_are_asked_for(tmp_path: Path) -> None:
    write_atomic(RunFolder(tmp_path).job_log("train-k-a1"), PRINTED.encode())
    assert "WARNING: 8 PYTHON" not in "".join(stored_logs(tmp_path))
    assert PRINTED in "".join(stored_logs(tmp_path, earlier=True))

"""Training and validation jobs that only wait and say how they ended, so that queueing is tested without a network.

What fold k does stands in `<model folder>/stub_<k>.json`: `holds` (wait until `release_<k>` exists), `dies` (how many attempts kill
themselves), `forgets` (to submit the validation).
Every job notes its begin and end in `<model folder>/usage.jsonl`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.cluster.jobs import Jobs
from orchestrator.run.outcome import EndState, Outcome, write_outcome
from trainers.contract.commits import Committed, Manifest
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_json_atomic


def note(folder: RunFolder, what: str, job: str) -> None:
    line = {"what": what, "job": job, "fold": str(folder.spec().fold), "unix": time.time(), "workers": folder.spec().workers.count}
    with (folder.model_folder / "usage.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def script(folder: RunFolder) -> dict[str, Any]:
    path = folder.model_folder / f"stub_{folder.spec().fold}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def train(folder: RunFolder, least: int) -> None:
    orders, spec = script(folder), folder.spec()
    fencing_token = acquire_token(folder, os.environ["NNFLEET_SUBMISSION_ID"], least=least)
    write_json_atomic(folder.progress_file, {"epoch": 0, "iteration": 1, "phase": "train", "unix": time.time(), "attempt": fencing_token})
    note(folder, "begin", "training")
    print(f"stub trains {spec.run_key} in attempt {fencing_token}", flush=True)
    if fencing_token <= orders.get("dies", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    while orders.get("holds") and not (folder.model_folder / f"release_{spec.fold}").exists() and not folder.stop_file.exists():
        time.sleep(0.1)
    note(folder, "end", "training")
    state: EndState = "STOPPED" if folder.stop_file.exists() else "TRAINED"
    write_outcome(folder, Outcome(job="training", state=state, fencing_token=fencing_token, message=f"stub {state.lower()}"))
    if state == "TRAINED":
        commit_all_epochs(folder, fencing_token)
    if state == "TRAINED" and not orders.get("forgets"):
        Jobs.inside_job().submit_validation(folder, spec, fencing_token)


def commit_all_epochs(folder: RunFolder, fencing_token: int) -> None:
    """Leave what a finished training leaves."""
    spec = folder.spec()
    final = Manifest(
        checkpoint="final",
        file="x",
        epoch=spec.schedule.epochs - 1,
        fencing_token=fencing_token,
        ema_pseudo_dice=None,
        sha256="0",
        size_bytes=1,
    )
    done = Committed(
        run_key=spec.run_key,
        epochs_done=spec.schedule.epochs,
        fencing_token=fencing_token,
        history=(),
        final=final,
        state_sha256="0",
        state_size_bytes=1,
    )
    write_json_atomic(folder.state / f"{done.stem}.json", json.loads(done.model_dump_json()))
    for name in spec.validation.checkpoints:
        folder.checkpoint(name).touch()


def validate(folder: RunFolder, fencing_token: int) -> None:
    note(folder, "begin", "validation")
    print(f"stub validates attempt {fencing_token}", flush=True)
    for index, name in enumerate(folder.spec().validation.checkpoints):
        write_json_atomic(folder.own / f"validation_{name}.json", {"dice_mean": 0.5 + index / 4})
        write_json_atomic(folder.validation(name) / "summary.json", {})
    note(folder, "end", "validation")
    write_outcome(folder, Outcome(job="validation", state="SUCCEEDED", fencing_token=fencing_token, message="stub validated"))


if __name__ == "__main__":
    run_folder = RunFolder(Path(sys.argv[1]))
    act = validate if os.environ["NNFLEET_SUBMISSION_ID"].startswith("validate-") else train
    act(run_folder, int(sys.argv[3]))

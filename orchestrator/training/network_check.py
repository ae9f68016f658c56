"""Asks in a short process whether a run's network can be built and takes one patch, before any worker starts.

It takes about 5 s and 0.7 GB, which are free again when the training begins; in this process torch's meta device would hold 150 MB for
as long as the run trains.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import trainers
from trainers.contract.architecture import NetworkTrial, NetworkVerdict
from trainers.contract.cascade import network_channels
from trainers.contract.own_code import check_files
from trainers.contract.plans import labels_of, load_dataset_json, plans_of
from trainers.contract.pretrained import check_unchanged
from trainers.contract.run_spec import RunSpec
from trainers.contract.split_batch import rank_sizes

log = logging.getLogger(__name__)
LIMIT_S = 180.0


def network_problem(spec: RunSpec) -> str:
    """Why the network of a run's plans cannot be trained, or not begin with its pretrained weights, or a function of the user's not be
    called as it has to be, in words; empty when it can, and when that could not be found out.

    Raises ConfigError where the file of these weights is missing or another one by now, StorageError.
    """
    check_files(spec.own)
    if spec.pretrained_weights is not None:
        check_unchanged(spec.pretrained_weights)
    found = _verdict(spec)
    if found is None or found.unknown:
        why = found.unknown if found else "the checking process ended without an answer"
        log.warning("whether the network of %s takes its patch is not known before a worker starts: %s", spec.run_key, why[:500])
    if found is None or not found.refusal:
        return found.unfit_weights if found else ""
    if found.is_own:
        return found.refusal
    where = f"configuration {spec.configuration!r} of {spec.preprocessed_folder / spec.plans}.json"
    return f"plans: {where}: {found.refusal.removeprefix('plans: ')[:2000]}"


def _verdict(spec: RunSpec) -> NetworkVerdict | None:
    """What the process answers; None when it does not."""
    configuration = plans_of(spec).configuration(spec.configuration)
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    labels = labels_of(dataset_json)
    trial = NetworkTrial(
        configuration=configuration,
        channels=network_channels(configuration, dataset_json, labels),
        heads=labels.num_heads,
        batch=min(rank_sizes(int(configuration["batch_size"]), spec.workers.most)),
        pretrained_weights=spec.pretrained_weights.file if spec.pretrained_weights else None,
        run=spec if spec.own.named else None,
    )
    code = Path(trainers.__path__[0]).parent
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "trainers.network.trial"],
            input=trial.model_dump_json(),
            cwd=code,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        return NetworkVerdict.model_validate_json(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as err:
        log.warning("%s: %s", type(err).__name__, str(getattr(err, "stderr", "") or err)[-500:])
        return None

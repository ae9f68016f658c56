"""Full validation of a fold by two workers beside one, each with a thread, on real Ray: seconds until all cases are done.

    python -m benchmarks.validation_workers [--rounds 20] [--cases 8] [--network small]

The same cases with the same weights by the validation job's own function, one worker and two in turn on a cluster of two CPUs. Counted are
the cases, from the moment when the first worker has loaded its network to the last result, and the whole from the call to the summaries.
Needs two idle cores.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update({"OMP_NUM_THREADS": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "RAY_USAGE_STATS_ENABLED": "0"})

import ray

from benchmarks.validation import quartiles
from benchmarks.validation_sides import NAME, NETWORKS, preprocess
from orchestrator.validation.job import run_validation
from orchestrator.validation.worker_pool import Pool
from tests.integration.cluster import SHORT
from tests.random_model import random_run
from tests.toy import nnunet_environment, toy_dataset
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WorkerSpec

TARGET = 1.8


def validated_s(folder: RunFolder) -> tuple[float, float]:
    """Seconds of the cases alone, and of the whole validation, of a run none of whose cases is done."""
    for name in ("best", "final"):
        shutil.rmtree(folder.validation(name), ignore_errors=True)
        shutil.rmtree(folder.cases(name), ignore_errors=True)
    moments: list[float] = []
    given, ran = Pool._give_next, Pool.run

    def give_next(self: Pool, actor: Any, place: str) -> None:
        moments.append(time.perf_counter())
        given(self, actor, place)

    def run(self: Pool, count: int) -> None:
        ran(self, count)
        moments.append(time.perf_counter())

    began = time.perf_counter()
    with mock.patch.object(Pool, "_give_next", give_next), mock.patch.object(Pool, "run", run):
        outcome = run_validation(folder, delivery_waits_s=())
    assert outcome.state == "SUCCEEDED", outcome
    return moments[-1] - moments[0], time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cases", type=int, default=8, help="validation cases of the fold")
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    network, spent = NETWORKS[options.network], dict[int, list[tuple[float, float]]]({1: [], 2: []})
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory(prefix="nnr-", dir=SHORT) as session:
        toy = toy_dataset(Path(place), cases=3 * options.cases, scale=network.scale)
        with nnunet_environment(Path(place)):
            preprocess(toy, network)
        runs = {n: random_run(toy, Path(place, str(n)), NAME, workers=WorkerSpec(count=n, gpus=0, cpus=1))[1] for n in spent}
        ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=session, object_store_memory=100_000_000)
        for turn in range(options.rounds + 1):
            for count in (1, 2) if turn % 2 else (2, 1):
                measured = validated_s(runs[count])
                if turn:  # the first one warms the disk's cache up
                    spent[count].append(measured)
        ray.shutdown()
    print(f"{options.network}, {options.cases} cases, {options.rounds} rounds; target {TARGET}\n")
    print("| counted | one worker, s | two workers, s | ratio (quartiles) |\n| --- | --- | --- | --- |")
    for part, name in enumerate(("cases", "whole")):
        one, two = ([each[part] for each in spent[count]] for count in (1, 2))
        ratios = [a / b for a, b in zip(one, two, strict=True)]
        print(f"| {name} | {statistics.median(one):.2f} | {statistics.median(two):.2f} | {quartiles(ratios)} |")


if __name__ == "__main__":
    main()

"""Peak memory of a predicted case with many classes, from tiles to labels on the original grid: ours beside nnU-Net's, a process each.

    python -m benchmarks.validation_memory [--classes 100] [--size 192] [--patch 64]

A preprocessed case of 5/6 of --size voxels along each axis becomes labels of --size. The network is one convolution 1x1x1, so that what
is measured belongs to the tiles, the logits and the export. The peak of a process that has the libraries and the image alone is shown too.
"""

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.rows import Row, store
from benchmarks.validation_export import of_classes
from tests.export_case import Shape, case, nnunets
from trainers.validation.sliding_window import ClassByClassPredictor

WHO = {"nobody": None, "ours": ClassByClassPredictor, "nnunet": nnUNetPredictor}


def shapes(size: int) -> tuple[Shape, Shape]:
    """Shape of the preprocessed case, and of its labels."""
    small = size * 5 // 6
    return (small, small, small), (size, size, size)


def predict_once(who: str, classes: int, size: int, patch: int) -> None:
    """What a child of `peak_mb` does: it prints its peak."""
    (shape, original), model, kind = shapes(size), of_classes(classes), WHO[who]
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(1))
    if kind is not None:
        model.configuration.configuration["patch_size"] = [patch] * 3
        predictor = kind(device=torch.device("cpu"), allow_tqdm=False)
        network = torch.nn.Conv3d(1, classes, 1)
        predictor.manual_initialization(network, model.plans, model.configuration, None, model.dataset_json, "nnUNetTrainer", None)
        logits = predictor.predict_sliding_window_return_logits(image)
        if who == "ours":
            model.segmentation(logits, case(original))
        else:
            nnunets(model, logits, case(original))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.__stdout__)


def peak_mb(who: str, classes: int, size: int, patch: int) -> int:
    """Peak memory (MB) of a process of its own."""
    numbers = ("--classes", str(classes), "--size", str(size), "--patch", str(patch))
    command = [sys.executable, "-m", "benchmarks.validation_memory", "--once", who, *numbers]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", choices=list(WHO), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.once:
        with contextlib.redirect_stdout(io.StringIO()):
            predict_once(options.once, options.classes, options.size, options.patch)
        return
    shape, original = shapes(options.size)
    print(f"{options.classes} classes, {shape} to {original} voxels, patch {options.patch}; peaks in MB", flush=True)
    peaks = {}
    for who in WHO:
        peaks[who] = peak_mb(who, options.classes, options.size, options.patch)
        print(f"{who}: {peaks[who]}", flush=True)
    print(f"ours is {peaks['ours'] / peaks['nnunet']:.3f} of nnU-Net's")
    what = f"peak memory of a predicted case, {options.classes} classes, {options.size}^3, MB"
    store(options.json, [Row(what, peaks["ours"], peaks["nnunet"])], peaks)


if __name__ == "__main__":
    main()

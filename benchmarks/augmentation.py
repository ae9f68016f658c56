"""CPU per sample, from nnU-Net's own blosc2 files to a batch in shared memory, beside nnU-Net's loader with batchgeneratorsv2's transforms.

    python -m benchmarks.augmentation [--samples 400] [--cells large_default thick_da5 ...] [--json FILE]

Both sides prepare batches of two in this process with one thread, in turn, from the same files; which one begins alternates. Counted is the
process' CPU time of reading, augmenting, collating, and copying the batch into shared memory for the training process: on nnU-Net's side
into new memory, as tensors are sent between processes, on ours into memory that is used again, as in Ray's object store. A first round is
thrown away. The draws of the two sides are their own: rare stages that cost much need many samples.
"""

import argparse
import contextlib
import io
import json
import mmap
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "nnUNet_compile": "f"})

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.rows import Row, store
from tests.nnunet_reference import geometry_of_nnunet, loader_of_nnunet, managers, trainer_class
from tests.toy import PLANS, Toy, nnunet_environment, toy_dataset, toy_spec
from trainers.contract.run_spec import RunSpec
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch

BATCH_SIZE = 2
RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """Shape of a case and of the patches cut from it, voxels; `stages`: strides of the network, which set the coarser targets."""

    shape: tuple[int, int, int]
    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    parent: str


CASES = {
    "large": Case((300, 400, 400), (128, 128, 128), ((1, 1, 1), *((2, 2, 2),) * 5), "3d_fullres"),
    "thick": Case((40, 512, 512), (28, 256, 256), ((1, 1, 1), (1, 2, 2), (1, 2, 2), *((2, 2, 2),) * 2, (1, 2, 2)), "3d_fullres"),
    "slices": Case((40, 512, 512), (512, 512), ((1, 1), *((2, 2),) * 7), "2d"),
}
TRAINERS = {"default": "nnUNetTrainer", "da5": "nnUNetTrainerDA5"}
CELLS = [f"{case}_{recipe}" for case in CASES for recipe in TRAINERS]


@dataclass(frozen=True)
class Times:
    """CPU milliseconds per sample of each batch, in the order of the pairs."""

    ours: list[float]
    theirs: list[float]


def add_configurations(toy: Toy, chosen: Sequence[str] = tuple(CASES)) -> None:
    """Add a configuration for each chosen case to the toy's plans, and write two preprocessed cases for it with nnU-Net's own class."""
    path = toy.preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    cases = {name: CASES[name] for name in chosen}
    for name, case in cases.items():
        architecture = json.loads(json.dumps(plans["configurations"][case.parent]["architecture"]))
        stages = len(case.strides)
        architecture["arch_kwargs"] |= {
            "n_stages": stages,
            "features_per_stage": [4] * stages,
            "strides": [list(row) for row in case.strides],
            "kernel_sizes": [[3] * len(case.patch)] * stages,
            "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        }
        plans["configurations"][name] = {
            "inherits_from": case.parent,
            "data_identifier": f"{PLANS}_{name}",
            "patch_size": list(case.patch),
            "batch_size": BATCH_SIZE,
            "architecture": architecture,
        }
    path.write_text(json.dumps(plans, indent=1))
    for name, case in cases.items():
        folder = toy.preprocessed / f"{PLANS}_{name}"
        folder.mkdir()
        for index in range(2):
            write_case(folder / f"toy_{index:03d}", case, index)


def write_case(target: Path, case: Case, seed: int) -> None:
    """A preprocessed case: smooth intensities with noise, and two nested organs in a third of its length."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    generator = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in case.shape]
    z, y, x = np.meshgrid(*(axis**2 for axis in axes), indexing="ij", sparse=True)
    distance = z + y + x
    labels = (distance < 0.3).astype(np.int8) + (distance < 0.08)
    image = labels - distance + generator.normal(0, 0.3, case.shape).astype(np.float32)
    patch = case.patch if len(case.patch) == 3 else (1, *case.patch)
    blocks, chunks = comp_blosc2_params((1, *case.shape), patch, 4)
    blocks_seg, chunks_seg = comp_blosc2_params((1, *case.shape), patch, 1)
    locations = DefaultPreprocessor._sample_foreground_locations(labels[None], [1, 2])
    nnUNetDatasetBlosc2.save_case(
        image[None].astype(np.float32), labels[None], {"class_locations": locations}, str(target), chunks, blocks, chunks_seg, blocks_seg
    )


def nnunet_loader(spec: RunSpec, trainer: str) -> Any:
    """nnU-Net's loader with the transforms of its trainer."""
    configuration, _ = managers(spec)
    rotation, dummy_2d, _, mirror_axes = geometry_of_nnunet(tuple(configuration.patch_size), trainer)
    transforms = trainer_class(trainer).get_training_transforms(
        configuration.patch_size,
        rotation,
        [list(scale) for scale in open_dataset(spec).scales],
        mirror_axes,
        dummy_2d,
        use_mask_for_norm=configuration.use_mask_for_norm,
    )
    return loader_of_nnunet(spec, "train", transforms)


def side_of_nnunet(spec: RunSpec, trainer: str) -> Callable[[int], Any]:
    """Batches of nnU-Net's loader with the transforms of its trainer."""
    loader = nnunet_loader(spec, trainer)

    def batch(iteration: int) -> list[torch.Tensor]:
        np.random.seed(iteration)
        torch.manual_seed(iteration)
        made = loader.generate_train_batch()
        return [tensor.share_memory_() for tensor in (made["data"], *made["target"])]

    return batch


def our_side(spec: RunSpec) -> Callable[[int], Any]:
    """Batches of ours, copied into memory that is kept, as Ray's object store keeps its own."""
    data = open_dataset(spec)
    store: list[npt.NDArray[np.uint8]] = []

    def batch(iteration: int) -> None:
        made = make_batch(data, spec, "train", 0, iteration, range(BATCH_SIZE))
        if not store:
            store.append(np.frombuffer(mmap.mmap(-1, made.nbytes), np.uint8))
        fill(store[0], [made.images, *made.targets])

    return batch


def fill(store: npt.NDArray[np.uint8], arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Copy arrays into the store one after the other."""
    at = 0
    for array in arrays:
        store[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        at += array.nbytes


def cpu_ms(batch: Callable[[int], Any], iteration: int) -> float:
    """CPU milliseconds per sample."""
    started = time.process_time()
    batch(iteration)
    return (time.process_time() - started) * 1000 / BATCH_SIZE


def measured(toy: Toy, cell: str, samples: int) -> Times:
    """`samples` of each side, batch by batch in turn."""
    case, recipe = cell.rsplit("_", 1)
    spec = toy_spec(toy, case, TRAINERS[recipe], fold="all")
    sides = our_side(spec), side_of_nnunet(spec, TRAINERS[recipe])
    times = Times([], [])
    for iteration in range(-4, samples // BATCH_SIZE):
        order = (0, 1) if iteration % 2 else (1, 0)
        took = {side: cpu_ms(sides[side], iteration + 4) for side in order}
        if iteration >= 0:
            times.ours.append(took[0])
            times.theirs.append(took[1])
    return times


def ratio(times: Times) -> tuple[float, float, float]:
    """Ratio of the means, and the quartiles of what it would be over samples drawn again from those measured."""
    ours, theirs = np.array(times.ours), np.array(times.theirs)
    draws = np.random.default_rng(0).integers(0, len(ours), (2, RESAMPLES, len(ours)))
    spread = ours[draws[0]].mean(1) / theirs[draws[1]].mean(1)
    low, high = np.quantile(spread, (0.25, 0.75))
    return float(ours.mean() / theirs.mean()), float(low), float(high)


def report(cell: str, times: Times) -> str:
    """A row of the table."""
    middle, low, high = ratio(times)
    columns = [statistics.mean(times.ours), statistics.median(times.ours), statistics.mean(times.theirs), statistics.median(times.theirs)]
    numbers = " | ".join(f"{value:.1f}" for value in columns)
    return f"| {cell} | {len(times.ours) * BATCH_SIZE} | {numbers} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def row_of(cell: str, times: Times) -> Row:
    """Its row in the table of all benchmarks."""
    middle, low, high = ratio(times)
    case, recipe = cell.rsplit("_", 1)
    patch = "x".join(map(str, CASES[case].patch))
    return Row(f"CPU per sample, {patch}, {recipe}, ms", statistics.mean(times.ours), statistics.mean(times.theirs), (low, middle, high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400, help="of each side and cell")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        toy = toy_dataset(Path(base), cases=2)
        with nnunet_environment(toy.base), contextlib.redirect_stdout(io.StringIO()):
            add_configurations(toy)
        print("| cell | samples | ours, mean ms | median | nnU-Net, mean ms | median | ratio of means | quartiles |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for cell in options.cells:
            found[cell] = measured(toy, cell, options.samples)
            print(report(cell, found[cell]), flush=True)
    store(options.json, [row_of(cell, times) for cell, times in found.items()], {cell: vars(times) for cell, times in found.items()})


if __name__ == "__main__":
    main()

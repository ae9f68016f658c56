"""Whole-case prediction and its summary beside nnU-Net's own, on the same weights."""

import itertools
import json
import multiprocessing.dummy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

from orchestrator import api
from orchestrator.export.fold_sources import FolderFold
from orchestrator.publishing.validation_report import write_report
from orchestrator.run.candidates import Candidates
from tests.conftest import Toys
from tests.random_model import random_run
from tests.toy import Toy, nnunet_environment
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, ValidationSpec, candidate_name
from trainers.contract.summary import summarise, summary_bytes
from trainers.errors import CheckpointError, DataError
from trainers.validation.case_memory import of_largest
from trainers.validation.inference import CasePredictor
from trainers.validation.one_case import case_picture, original_slice, validate_case

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's and its readers' own

VARIANTS = [
    pytest.param("labels", "toy_3d", {}, id="labels-3d"),
    pytest.param("labels", "toy_2d", {}, id="labels-2d"),
    pytest.param("regions", "toy_3d", {}, id="regions-3d"),
    pytest.param("ignore", "toy_3d", {}, id="ignore-3d"),
    pytest.param("labels", "toy_aniso", {"anisotropic": True}, id="dummy-2d"),
]


def read(path: Path) -> Any:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def equal_share(one: Path, other: Path) -> float:
    """Share of equal voxels; the geometry must agree too."""
    a, b = sitk.ReadImage(str(one)), sitk.ReadImage(str(other))
    assert (a.GetSize(), a.GetSpacing(), a.GetOrigin(), a.GetDirection()) == (b.GetSize(), b.GetSpacing(), b.GetOrigin(), b.GetDirection())
    return float((sitk.GetArrayFromImage(a) == sitk.GetArrayFromImage(b)).mean())


def raw_images(spec: RunSpec, raw: Path) -> list[list[str]]:
    return [[str(path) for path in sorted((raw / "imagesTr").glob(f"{case}_*"))] for case in spec.val_cases]


def nnunets_predictions(folder: RunFolder, spec: RunSpec, raw: Path, output: Path) -> None:
    """nnU-Net's predictor on the raw images with our checkpoint_final.pth."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder.model_folder), (spec.fold,), "checkpoint_final.pth")
    output.mkdir()
    predictor.predict_from_files_sequential(raw_images(spec, raw), [str(output / case) for case in spec.val_cases])


def nnunets_summary(predictor: CasePredictor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """nnU-Net's compute_metrics_on_folder, with threads in place of its pool of spawned processes."""
    from nnunetv2.evaluation import evaluate_predictions

    monkeypatch.setattr(evaluate_predictions.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    labels = predictor.plans.get_label_manager(predictor.dataset_json)
    output = folder / "nnunets.json"
    evaluate_predictions.compute_metrics_on_folder(
        str(predictor.spec.preprocessed_folder / "gt_segmentations"),
        str(folder),
        str(output),
        predictor.reader,
        predictor.file_ending,
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=1,
    )
    return dict(json.loads(output.read_text()))


def test_nnunets_predictor_loads_the_winner_among_candidates(toys: Toys, tmp_path: Path) -> None:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    toy = toys("labels")
    spec, folder = random_run(toy, tmp_path / "results", validation=ValidationSpec(candidates=1))
    committed = newest_committed(folder)
    assert committed is not None
    assert committed.best is not None
    candidate = committed.best.model_copy(update={"checkpoint": candidate_name(1)})
    content = committed.model_copy(update={"candidates": (candidate,)}).model_dump_json()
    (folder.state / f"{committed.stem}.json").write_text(content)
    folder.candidates_file.write_text(Candidates(winner=1).model_dump_json())
    exported = api.export(spec.address, tmp_path / "model", results=tmp_path / "results", candidate="winner")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    with nnunet_environment(toy.base):
        predictor.initialize_from_trained_model_folder(str(exported.folder), exported.predicting, f"checkpoint_{exported.checkpoint}.pth")
    best = torch.load(folder.checkpoint("best"), weights_only=True, map_location="cpu")["network_weights"]
    [loaded] = predictor.list_of_parameters
    assert loaded.keys() == best.keys()
    assert all(torch.equal(loaded[name], best[name]) for name in best)


@pytest.mark.parametrize(("kind", "configuration", "options"), VARIANTS)
def test_whole_cases_and_summary_equal_nnunets(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, configuration: str, options: dict[str, Any]
) -> None:
    toy = toys(kind, **options)
    spec, folder = random_run(toy, tmp_path / "results", configuration)
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    results = [validate_case(predictor, folder, "final", case) for case in spec.val_cases]
    with nnunet_environment(toy.base):
        nnunets_predictions(folder, spec, toy.raw, tmp_path / "nnunet")
        theirs = nnunets_summary(predictor, tmp_path / "nnunet", monkeypatch)
        theirs_on_ours = nnunets_summary(predictor, folder.validation("final"), monkeypatch)
    classes: set[int] = set()
    for case in spec.val_cases:
        assert equal_share(folder.validation("final") / f"{case}.nii.gz", tmp_path / "nnunet" / f"{case}.nii.gz") >= 0.9999
        classes |= set(np.unique(read(folder.validation("final") / f"{case}.nii.gz")).tolist())
    assert len(classes) > 1, "the random network predicts one class alone: this test says nothing"
    ours = json.loads(summary_bytes(summarise(results, predictor.labels)))
    assert_same(ours, theirs_on_ours)
    for key, value in theirs["mean"].items():
        np.testing.assert_allclose(ours["mean"][key]["Dice"], value["Dice"], atol=1e-4)


@pytest.mark.parametrize(
    ("trainer", "axes"),
    [("nnUNetTrainerNoMirroring", None), ("nnUNetTrainer_onlyMirror01", (0, 1)), ("nnUNetTrainerNoDeepSupervision", (0, 1, 2))],
)
def test_nnunet_predicts_with_the_checkpoint_of_a_variant_as_we_do(toys: Toys, tmp_path: Path, trainer: str, axes: Any) -> None:
    """It finds its own class by the name in the checkpoint, and mirrors along the axes of that trainer alone."""
    import torch

    toy = toys("labels")
    spec, folder = random_run(toy, tmp_path / "results", trainer=trainer)
    checkpoint = torch.load(folder.checkpoint("final"), weights_only=True)
    assert (checkpoint["trainer_name"], checkpoint["inference_allowed_mirroring_axes"]) == (trainer, axes)
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    with nnunet_environment(toy.base):
        nnunets_predictions(folder, spec, toy.raw, tmp_path / "nnunet")
    for case in spec.val_cases:
        assert equal_share(predictor.predict(case, tmp_path / "ours"), tmp_path / "nnunet" / f"{case}.nii.gz") >= 0.9999


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal structure and values; a NaN of nnU-Net's foreground mean may be a number with us. As text, NaN equals NaN."""
    assert json.dumps(ours["metric_per_case"], sort_keys=True, indent=1) == json.dumps(theirs["metric_per_case"], sort_keys=True, indent=1)
    assert ours["mean"].keys() == theirs["mean"].keys()
    for key, values in theirs["mean"].items():
        assert ours["mean"][key] == pytest.approx(values, nan_ok=True, rel=1e-12)
    for metric, value in theirs["foreground_mean"].items():
        assert value != value or ours["foreground_mean"][metric] == pytest.approx(value, rel=1e-12)


def test_nnunets_command_accepts_the_results_folder(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder = random_run(toy, tmp_path / "results")
    case = spec.val_cases[0]
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    predictor.predict(case, tmp_path / "ours")
    images = tmp_path / "images"
    images.mkdir()
    for image in raw_images(spec, toy.raw)[0]:
        (images / Path(image).name).symlink_to(image)
    command = [str(Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder")]
    command += ["-i", str(images), "-o", str(tmp_path / "theirs"), "-m", str(folder.model_folder), "-f", "0", "-device", "cpu"]
    command += ["-npp", "1", "-nps", "1", "--disable_progress_bar", "-chk", "checkpoint_final.pth"]
    subprocess.run(command, check=True, env=os.environ | toy.env() | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    assert equal_share(tmp_path / "ours" / f"{case}.nii.gz", tmp_path / "theirs" / f"{case}.nii.gz") >= 0.9999


@pytest.mark.parametrize(("kind", "fold", "least"), [("regions", 0, 0.99), ("labels", 1, 0.7)])
def test_a_picture_shows_the_original_grid(toys: Toys, tmp_path: Path, kind: str, fold: int, least: float) -> None:
    """Put back onto the original grid, the preprocessed image shows the raw slice: cropped (regions), resampled and clipped (labels)."""
    toy = toys(kind)
    spec, folder = random_run(toy, tmp_path / "results", fold=fold)
    predictor = CasePredictor(spec, folder.checkpoint("best"), "cpu")
    case = spec.val_cases[0]
    shown = case_picture(predictor, case, predictor.predict(case, tmp_path))
    raw = read(toy.raw / "imagesTr" / f"{case}_0000.nii.gz")
    z = len(raw) // 2
    inside = raw[z] != 0
    assert shown.image_ZYX.shape == shown.truth_ZYX.shape == raw.shape
    assert np.corrcoef(original_slice(predictor, case, z)[inside], raw[z][inside])[0, 1] > least
    assert shown.value_names == (["whole", "core", "enhancing"] if kind == "regions" else ["organ", "lesion"])


def test_the_original_slice_undoes_crop_and_transposition() -> None:
    volume_ZYX = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
    turned = volume_ZYX.transpose(2, 0, 1)
    properties = {
        "shape_before_cropping": turned.shape,
        "bbox_used_for_cropping": [[1, 10], [2, 8], [3, 9]],
        "shape_after_cropping_and_before_resampling": (9, 6, 6),
    }
    cropped = turned[1:10, 2:8, 3:9]
    predictor = SimpleNamespace(plans=SimpleNamespace(transpose_forward=[2, 0, 1]), image_and_properties=lambda _: (cropped, properties))
    shown = original_slice(predictor, "case", 4)  # type: ignore[arg-type]
    np.testing.assert_allclose(shown[3:9, 1:10], volume_ZYX[4, 3:9, 1:10], rtol=1e-6)
    assert (shown[:3] == cropped.min()).all()


def test_a_broken_case_names_itself(toys: Toys, tmp_path: Path) -> None:
    spec, folder = random_run(toys("labels"), tmp_path / "results")
    predictor = CasePredictor(spec, folder.checkpoint("best"), "cpu")
    with pytest.raises(DataError, match="case nobody in .* cannot be read"):
        predictor.predict("nobody", tmp_path)
    with pytest.raises(DataError, match=r"nobody\.nii\.gz cannot be read"):
        predictor.read_segmentation(predictor.reference_file("nobody"))


def test_the_case_of_most_voxels_says_what_memory_a_worker_needs(toys: Toys, tmp_path: Path) -> None:
    """1 GiB, 24^3 x 180 bytes of a patch, 50,000 voxels x (26 + 48); a case that cannot be read is passed over: its worker names it."""
    spec, _ = random_run(toys("labels"), tmp_path / "results")
    folder = spec.preprocessed_folder / "nnUNetPlans_3d_fullres"
    sizes = {case: blosc2.open(str(folder / f"{case}.b2nd")).size for case in spec.val_cases}
    found = [of_largest(spec, ["nobody", *spec.val_cases], weights_bytes) for weights_bytes in (0, 2**20)]
    assert [largest.case_id for largest in found if largest] == [max(sizes, key=lambda case: sizes[case])] * 2
    assert [largest.peak_bytes // 2**20 for largest in found if largest] == [1030, 1032]
    assert of_largest(spec, ["nobody"], 0) is None


def test_a_case_with_voxels_that_are_no_numbers_names_itself(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder = random_run(toy, tmp_path / "results")
    copied = tmp_path / toy.name
    shutil.copytree(toy.preprocessed, copied)
    case_id = spec.val_cases[0]
    data = next(path for path in copied.glob(f"*/{case_id}.b2nd") if "3d" in path.parent.name).parent
    image = np.array(blosc2.open(str(data / f"{case_id}.b2nd"))[:])
    image[0, 0, 0, 0] = np.nan
    blosc2.asarray(image, urlpath=str(data / f"{case_id}.b2nd"), mode="w")
    predictor = CasePredictor(spec.model_copy(update={"preprocessed_folder": copied}), folder.checkpoint("best"), "cpu")
    with pytest.raises(DataError, match=rf"case {case_id} in .* not finite numbers .*: 1 of \d+ voxels of channel 0 \(CT\)"):
        predictor.predict(case_id, tmp_path)


def test_a_checkpoint_of_another_network_is_refused(toys: Toys, tmp_path: Path) -> None:
    spec, folder = random_run(toys("labels"), tmp_path / "results")
    _, other = random_run(toys("labels"), tmp_path / "other", "toy_2d")
    os.replace(other.checkpoint("best"), folder.checkpoint("best"))
    with pytest.raises(CheckpointError, match="does not fit 'toy_3d'"):
        CasePredictor(spec, folder.checkpoint("best"), "cpu")
    folder.checkpoint("final").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        CasePredictor(spec, folder.checkpoint("final"), "cpu")


def test_nnunet_finds_the_best_configuration_and_ensemble_by_the_probabilities_that_a_run_keeps(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On our results folder, and on a results folder of exported models; with threads in place of nnU-Net's pools of processes."""
    toy = toys("labels")
    exported = tmp_path / "exported" / toy.name
    for configuration, fold in itertools.product(("toy_3d", "toy_2d"), (0, 1)):
        spec, folder = random_run(toy, tmp_path / "results", configuration, fold=fold, validation=ValidationSpec(npz=True))
        predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
        results = [validate_case(predictor, folder, "final", case) for case in spec.val_cases]
        write_report(folder, spec, predictor.labels, "final", results)
        FolderFold(folder).fill(exported / folder.model_folder.name)
    found = [best_configuration(toy, results, monkeypatch) for results in (tmp_path / "results", tmp_path / "exported")]
    assert len(found[0]) == 3, "two configurations and their ensemble"
    assert found[0] == found[1]


def best_configuration(toy: Toy, results: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What nnUNetv2_find_best_configuration finds in a results folder: the Dice of each model and ensemble."""
    from nnunetv2.ensembling import ensemble
    from nnunetv2.evaluation import evaluate_predictions, find_best_configuration
    from nnunetv2.postprocessing import remove_connected_components

    for module in (ensemble, evaluate_predictions, remove_connected_components):
        monkeypatch.setattr(module.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    monkeypatch.setenv("nnUNet_results", str(results))
    models = [{"plans": "nnUNetPlans", "configuration": name, "trainer": "nnUNetTrainer"} for name in ("toy_3d", "toy_2d")]
    with nnunet_environment(toy.base):
        monkeypatch.setattr(find_best_configuration, "nnUNet_results", str(results))
        monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(results))
        found = find_best_configuration.find_best_configuration(toy.name, models, num_processes=1, folds=(0, 1))
    return dict(found["all_results"])

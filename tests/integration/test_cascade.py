"""Both stages of the cascade in full validation beside nnU-Net's own trainer, on the same weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name in its documentation
import torch

from orchestrator.dataset.preflight import check_run
from orchestrator.dataset.previous_stage import contents_of_previous, keep_or_compare
from orchestrator.export.fold_sources import FolderFold, folds_below
from orchestrator.export.model import export_model
from orchestrator.imported.continuing import continue_folder
from orchestrator.imported.importing import ImportedFold, import_folder
from orchestrator.publishing.validation_report import write_report
from orchestrator.run.progress import progress_of
from orchestrator.validation.cases import is_done
from orchestrator.validation.held_out_folds import folds_of
from orchestrator.validation.held_out_job import claim, prepared
from orchestrator.validation.held_out_pool import loaded_ensemble
from tests.conftest import Toys
from tests.integration.test_inference_parity import equal_share, raw_images
from tests.nnunet_begun import begun_fold, trained_alone
from tests.nnunet_reference import trained_by_nnunet, validated_by_nnunet
from tests.own_batches import Killed
from tests.random_model import commit, random_checkpoint, random_folds, random_run
from tests.toy import Toy, nnunet_environment
from tests.toy_cascade import FIRST, SECOND, cascade_spec, predict_first_stage, with_cascade
from trainers.contract.cascade import predictions_of, previous_predictions, read_record, record_of
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PreviousStage, RunSpec, Schedule, ValidationSpec, made_by
from trainers.contract.summary import summarise, summary_bytes
from trainers.data.case_files import read_properties
from trainers.errors import ConfigError, DataError
from trainers.storage.files import write_json_atomic
from trainers.training.assemble import model_config
from trainers.validation.held_out_case import done_case
from trainers.validation.inference import CasePredictor
from trainers.validation.one_case import validate_case

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's and its readers' own
FINAL = ValidationSpec(checkpoints=("final",))


@pytest.fixture(scope="module", params=["regions", pytest.param("labels", marks=pytest.mark.long)])
def toy(request: pytest.FixtureRequest, toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    with_both = with_cascade(toys(request.param), tmp_path_factory.mktemp("cascade"))
    with nnunet_environment(with_both.base):
        yield with_both


def validated(spec: RunSpec, folder: RunFolder) -> dict[str, Any]:
    """Our full validation; returns the summary."""
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    results = [validate_case(predictor, folder, "final", case) for case in spec.val_cases]
    return dict(json.loads(summary_bytes(summarise(results, predictor.labels))))


def same_means(ours: dict[str, Any], theirs: Path) -> None:
    expected = json.loads((theirs / "validation/summary.json").read_text())
    for key, value in expected["mean"].items():
        np.testing.assert_allclose(ours["mean"][key]["Dice"], value["Dice"], atol=1e-4)


def test_the_first_stage_leaves_what_nnunet_leaves(toy: Toy, tmp_path: Path) -> None:
    """Where nnU-Net looks for them, in files that it reads, and keyed to the weights."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    spec, folder = random_run(toy, tmp_path / "ours", FIRST, next_stages=(SECOND,), validation=FINAL)
    ours = validated(spec, folder)
    theirs = validated_by_nnunet(toy, tmp_path / "theirs", FIRST, folder.checkpoint("final"))
    same_means(ours, theirs)
    mine, nnunets = (predictions_of(place, SECOND) for place in (spec.model_folder, theirs.parent))
    assert mine.relative_to(tmp_path / "ours") == nnunets.relative_to(tmp_path / "theirs")
    assert {p.name for p in mine.glob("*.b2nd")} == {p.name for p in nnunets.iterdir()} == {f"{case}.b2nd" for case in spec.val_cases}
    data = toy.preprocessed / "nnUNetPlans_3d_fullres"
    found: set[int] = set()
    for case in spec.val_cases:
        image, _, seg, _ = nnUNetDatasetBlosc2(str(data), [case], folder_with_segs_from_previous_stage=str(mine)).load_case(case)
        expected = blosc2.open(str(nnunets / f"{case}.b2nd"))
        assert (seg.shape, seg.dtype, seg.chunks, seg.blocks) == (expected.shape, expected.dtype, expected.chunks, expected.blocks)
        assert seg.shape == image.shape[1:]
        assert (seg[:] == expected[:]).mean() >= 0.9999
        found |= set(np.unique(seg[:]).tolist())
        record = read_record(mine, case)
        assert record is not None
        assert (record.run_key, record.file) == (spec.run_key, f"{case}.b2nd")
    assert len(found) > 1, "the random network predicts one class alone: this test says nothing"


def test_a_case_without_its_segmentation_for_the_next_stage_is_predicted_again(toy: Toy, tmp_path: Path) -> None:
    spec, folder = random_run(toy, tmp_path, FIRST, next_stages=(SECOND,), validation=FINAL)
    predictor, place, case = (
        CasePredictor(spec, folder.checkpoint("final"), "cpu"),
        predictions_of(spec.model_folder, SECOND),
        spec.val_cases[0],
    )
    digest, file = predictor.checkpoint_sha256, place / f"{case}.b2nd"
    validate_case(predictor, folder, "final", case)
    assert is_done(folder, spec, "final", case, digest)
    stands = file.stat().st_mtime_ns
    validate_case(predictor, folder, "final", case)
    assert file.stat().st_mtime_ns == stands
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert not is_done(folder, spec, "final", case, digest)
    validate_case(predictor, folder, "final", case)
    assert is_done(folder, spec, "final", case, digest)
    record_of(place, case).write_text("{")
    assert not is_done(folder, spec, "final", case, digest)
    assert is_done(folder, spec.model_copy(update={"next_stages": ()}), "final", case, digest)
    assert progress_of(spec).stage == "validates"
    assert sorted(p.name for p in place.iterdir()) == ["nnfleet", f"{case}.b2nd"]


def test_the_second_stage_is_validated_as_by_nnunet(toy: Toy, tmp_path: Path) -> None:
    spec, folder = random_run(toy, tmp_path / "ours", SECOND, validation=FINAL)
    before = predict_first_stage(spec)
    theirs_before = tmp_path / "theirs" / before.relative_to(tmp_path / "ours")
    shutil.copytree(before, theirs_before)
    ours = validated(spec, folder)
    theirs = validated_by_nnunet(toy, tmp_path / "theirs", SECOND, folder.checkpoint("final"))
    same_means(ours, theirs)
    for case in spec.val_cases:
        assert equal_share(folder.validation("final") / f"{case}.nii.gz", theirs / "validation" / f"{case}.nii.gz") >= 0.9999


def test_the_prediction_follows_the_previous_stage(toy: Toy, tmp_path: Path) -> None:
    """Another segmentation of the first stage, another prediction; none, and the case is refused by name."""
    spec, folder = random_run(toy, tmp_path, SECOND, validation=FINAL)
    place, case = predict_first_stage(spec), spec.val_cases[0]
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    first = predictor.predict(case, tmp_path / "first")
    values = blosc2.open(str(place / f"{case}.b2nd"))[:]
    (place / f"{case}.b2nd").unlink()
    blosc2.asarray(np.zeros_like(values), urlpath=str(place / f"{case}.b2nd"))
    assert equal_share(first, predictor.predict(case, tmp_path / "second")) < 0.9999
    (place / f"{case}.b2nd").unlink()
    with pytest.raises(DataError, match=rf"previous stage: {previous_predictions(spec, FIRST)} has no segmentation of case {case}"):
        predictor.predict(case, tmp_path / "third")


def nnunets_ensemble(model: Path, image: Path, output: Path, previous: Path | None = None) -> Path:
    """The prediction by nnU-Net with both folds of an exported model; `previous`: the first stage's. Returns its file."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, 1), "checkpoint_final.pth")
    output.mkdir()
    masks = None if previous is None else str(previous.parent)
    case = image.name.removesuffix("_0000.nii.gz")
    predictor.predict_from_files_sequential([[str(image)]], [str(output / case)], folder_with_segs_from_prev_stage=masks)
    return output / f"{case}.nii.gz"


def of_both_stages(toy: Toy, results: Path) -> tuple[list[RunFolder], list[RunFolder]]:
    """Two folds of each stage; the record of the second names the runs of the first."""
    first = random_folds(toy, results, FIRST, validation=FINAL)
    keys, spec = [fold.spec().run_key for fold in first], first[0].spec()
    sources = {case: made_by(keys[number % 2]) for number, case in enumerate((*spec.train_cases, *spec.val_cases))}
    previous = PreviousStage(configuration=FIRST, sources=sources)
    return first, random_folds(toy, results, SECOND, validation=FINAL, previous_stage=previous)


def test_new_images_are_predicted_by_both_stages_as_by_nnunet(toy: Toy, tmp_path: Path) -> None:
    """As nnU-Net's predict does with the exported first stage, then with the exported second and `-prev_stage_predictions`. Other weights
    of the first stage are refused, and where they are away the cure is named, both before a worker starts."""
    results, output = tmp_path / "results", RunFolder(tmp_path / "ours")
    first, second = of_both_stages(toy, results)
    name, (case, *_) = second[0].spec().model, second[0].spec().train_cases
    image = tmp_path / "imagesTs" / f"{case}_0000.nii.gz"
    image.parent.mkdir()
    shutil.copy(toy.raw / "imagesTr" / image.name, image)
    assert folds_of(name, results) == (second, [])
    held, _ = prepared(second, image.parent, None, output.root, "final")
    claim(output, held)
    done_case(loaded_ensemble(held, "cpu"), held, output, case)
    assert sorted(path.name for path in output.root.iterdir()) == sorted(["dataset.json", "nnfleet", "plans.json", f"{case}.nii.gz"])

    models = [
        export_model(model, tmp_path / f"model{n}", folds_below(results, model), "here")
        for n, model in enumerate((first[0].spec().model, name))
    ]
    assert [model.previous_stage for model in models] == ["", FIRST]
    mask = nnunets_ensemble(models[0].folder, image, tmp_path / "masks")
    ours, theirs = output.root / f"{case}.nii.gz", nnunets_ensemble(models[1].folder, image, tmp_path / "theirs", mask)
    assert equal_share(ours, theirs) >= 0.9999
    sitk.WriteImage(sitk.ReadImage(str(mask)) * 0, str(mask))
    assert equal_share(ours, nnunets_ensemble(models[1].folder, image, tmp_path / "without", mask)) < 0.99

    last = first[1].checkpoint("final")
    other = random_checkpoint(first[1].spec(), first[1], "final", torch.load(last, weights_only=True), seed=9)
    commit(first[1].spec(), first[1], {"final": other})
    with pytest.raises(ConfigError, match="holds the predictions of other weights"):
        prepared(second, image.parent, None, output.root, "final")
    last.unlink()
    with pytest.raises(ConfigError, match=rf"{last} does not exist\. Put it back from a backup"):
        folds_of(name, results)


def test_nnunet_predicts_with_the_exported_second_stage_as_we_validate(toy: Toy, tmp_path: Path) -> None:
    """Given the first stage's segmentations as label files: of these cases both grids are the same. Where the image is 0 they have no
    label, by which nnU-Net would normalise the image otherwise than in its preprocessing."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    spec, folder = random_run(toy, tmp_path / "ours", SECOND, validation=FINAL)
    before, masks = predict_first_stage(spec), tmp_path / "masks"
    masks.mkdir()
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    for case in spec.val_cases:
        reference = sitk.ReadImage(str(predictor.reference_file(case)))
        raw = sitk.GetArrayFromImage(sitk.ReadImage(str(toy.raw / "imagesTr" / f"{case}_0000.nii.gz")))
        box = read_properties(toy.preprocessed / "nnUNetPlans_3d_fullres", case)["bbox_used_for_cropping"]
        inside, file = tuple(slice(*edges) for edges in box), before / f"{case}.b2nd"
        found = np.zeros(raw.shape, np.uint8)
        found[inside] = np.where(raw[inside] == 0, 0, blosc2.open(str(file))[:])
        file.unlink()
        blosc2.asarray(np.ascontiguousarray(found[inside]), urlpath=str(file))
        image = sitk.GetImageFromArray(found)
        image.CopyInformation(reference)
        sitk.WriteImage(image, str(masks / f"{case}.nii.gz"))
    results = [validate_case(predictor, folder, "final", case) for case in spec.val_cases]
    write_report(folder, spec, predictor.labels, "final", results)
    FolderFold(folder).fill(tmp_path / "exported")
    theirs = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(tmp_path / "exported"), (0,), "checkpoint_final.pth")
    (tmp_path / "theirs").mkdir()
    outputs = [str(tmp_path / "theirs" / case) for case in spec.val_cases]
    theirs.predict_from_files_sequential(raw_images(spec, toy.raw), outputs, folder_with_segs_from_prev_stage=str(masks))
    for case in spec.val_cases:
        assert equal_share(folder.validation("final") / f"{case}.nii.gz", tmp_path / "theirs" / f"{case}.nii.gz") >= 0.9999


def test_a_second_stage_killed_and_resumed_keeps_its_bits(toy: Toy, tmp_path: Path) -> None:
    trainer = "nnUNetTrainerDA5"

    def begun(name: str) -> RunFolder:
        model_folder = tmp_path / name / toy.name / f"{trainer}__nnUNetPlans__{SECOND}"
        schedule = Schedule(epochs=3, train_iterations=2, val_iterations=1)
        spec = cascade_spec(toy, trainer, model_folder=model_folder, schedule=schedule)
        predict_first_stage(spec)
        write_json_atomic(RunFolder(spec.run_folder).spec_file, spec.model_dump(mode="json"))
        return RunFolder(spec.run_folder)

    whole, killed = begun("whole"), begun("killed")
    assert trained_alone(whole, acquire_token(whole, "whole")) == "TRAINED"
    with pytest.raises(Killed):
        trained_alone(killed, acquire_token(killed, "killed"), killed_at=(2, 1))
    assert trained_alone(killed, acquire_token(killed, "again")) == "TRAINED"
    ours, theirs = (torch.load(folder.checkpoint("final"), weights_only=True)["network_weights"] for folder in (whole, killed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert next(iter(ours.values())).shape[1] == model_config(whole.spec()).channels > 1


def left_by_nnunet(toy: Toy, results: Path) -> Path:
    """The segmentations of a first stage where nnU-Net's trainer of the second looks for them; returns their folder."""
    return predict_first_stage(cascade_spec(toy, model_folder=results / toy.name / f"nnUNetTrainer__nnUNetPlans__{SECOND}"))


def test_a_second_stage_that_nnunet_trained_is_imported(toy: Toy, tmp_path: Path) -> None:
    before = left_by_nnunet(toy, tmp_path)
    folder = RunFolder(trained_by_nnunet(toy, tmp_path, SECOND))
    (fold,) = import_folder(folder.root, toy.preprocessed.parent)
    assert fold.lacking == ""
    theirs = json.loads(folder.summary("final").read_text())
    for case in theirs["metric_per_case"]:
        result = read_result(folder, "final", Path(case["prediction_file"]).name.removesuffix(".nii.gz"))
        assert result is not None
        expected = sorted(values["Dice"] for values in case["metrics"].values())
        np.testing.assert_allclose(sorted(metrics.dice for metrics in result.metrics.values()), expected, atol=1e-6)
    spec = folder.spec()
    assert spec.previous_stage is not None
    contents = contents_of_previous(before, [*spec.train_cases, *spec.val_cases], tmp_path / toy.name)
    assert spec.previous_stage.sources == {case: reading.sha256[:16] for case, reading in contents.items()}
    assert len(set(spec.previous_stage.sources.values())) == len(contents)


def test_a_second_stage_that_nnunet_left_after_one_of_three_epochs_is_finished_here(toy: Toy, tmp_path: Path) -> None:
    """On the segmentations that nnU-Net left, all of them and no others."""
    before = left_by_nnunet(toy, tmp_path)
    theirs = RunFolder(trained_by_nnunet(toy, tmp_path, SECOND, stops_after=1))

    def continued() -> ImportedFold:
        (fold,) = continue_folder(theirs.root, toy.preprocessed.parent, workers={"gpus": 0, "cpus": 1})
        return fold

    one = before / f"{cascade_spec(toy).train_cases[0]}.b2nd"
    content = one.read_bytes()
    one.unlink()
    assert f"{before} lacks the segmentation of {one.stem} by {FIRST!r}" in continued().lacking
    one.write_bytes(content)
    fold = continued()
    assert (fold.lacking, fold.run_folder is not None) == ("", True)
    folder = RunFolder(Path(str(fold.run_folder)))
    spec = folder.spec()
    assert (check_run(spec), keep_or_compare(spec, folder)) == ([], "")
    assert trained_alone(folder, acquire_token(folder, "driver")) == "TRAINED"
    committed = newest_committed(folder)
    assert committed is not None
    assert [(row.epoch, row.world_size) for row in committed.history] == [(0, 0), (1, 1), (2, 1)]
    for name in ("plans.json", "dataset.json"):
        shutil.copy(theirs.model_folder / name, folder.model_folder / name)  # as the opening of a campaign does
    predictor = CasePredictor(spec, folder.checkpoint("final"), "cpu")
    assert predictor.predict(spec.val_cases[0], folder.validation("final")).is_file()

    values = blosc2.open(str(one))[:]
    one.unlink()
    blosc2.asarray(np.zeros_like(values), urlpath=str(one))
    assert f"the segmentation of {one.stem} is not the one that {spec.address} was planned with" in "; ".join(check_run(spec))


def test_a_first_stage_that_goes_on_here_leaves_its_segmentations(toy: Toy, tmp_path: Path) -> None:
    root = begun_fold(toy, tmp_path, [0.4], configuration=FIRST, num_iterations_per_epoch="1", num_val_iterations_per_epoch="1")
    (fold,) = continue_folder(root, toy.preprocessed.parent, workers={"gpus": 0, "cpus": 1})
    folder = RunFolder(Path(str(fold.run_folder)))
    spec = folder.spec()
    assert spec.next_stages == (SECOND,)
    assert trained_alone(folder, acquire_token(folder, "driver")) == "TRAINED"
    for name in ("plans.json", "dataset.json"):
        shutil.copy(root.parent / name, folder.model_folder / name)
    validated(spec, folder)
    records = [read_record(predictions_of(folder.model_folder, SECOND), case) for case in spec.val_cases]
    assert [record is not None and record.run_key for record in records] == [spec.run_key] * len(records)

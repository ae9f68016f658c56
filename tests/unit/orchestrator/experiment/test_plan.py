"""When a gang fits, and what the plan of an experiment says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.plan import show_plan
from orchestrator.dataset.model_folder import run_differences
from orchestrator.errors import ConfigError, DataError
from orchestrator.experiment import plan
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment, parse_experiment
from orchestrator.experiment.plan import PlanReport, Queue, plan_report
from orchestrator.queue.gang_fit import NodeResources, Reservation, fit
from orchestrator.queue.order import Waiting
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.run.progress import Progress, progress_of
from orchestrator.tracking.records import fixed_params, params_of, run_name, tags_of
from tests.unit.tiny_dataset import CASES, Tiny, tiny_dataset
from trainers.contract.commits import Committed, Manifest
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WorkerSpec
from trainers.contract.split_batch import rank_positions, rank_sizes
from trainers.storage.files import write_json_atomic


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_dataset(tmp_path)


def experiment_of(tiny: Tiny, **keys: Any) -> Experiment:
    content = {"name": "e", "dataset": 17, "configurations": "3d_fullres", "folds": 0, "workers": {"gpus": 0, "cpus": 1}, **tiny.folders}
    return parse_experiment(json.dumps({**content, **keys}))


def node(cpus: float, gpus: float = 0, free_cpus: float | None = None, free_gpus: float | None = None, node_id: str = "n") -> NodeResources:
    free = {"CPU": cpus if free_cpus is None else free_cpus, "GPU": gpus if free_gpus is None else free_gpus}
    return NodeResources(node_id, {"CPU": cpus, "GPU": gpus}, free)


def gang(count: int, gpus: int = 1, cpus: int = 4) -> WorkerSpec:
    return WorkerSpec(count=count, gpus=gpus, cpus=cpus)


@pytest.mark.parametrize(
    ("workers", "nodes", "when", "because"),
    [
        (gang(1), [node(8, 1)], "now", "1 GPU and 8 CPUs free."),
        (gang(2), [node(8, 1)], "never", "needs 2 workers x (1 GPU, 4 CPUs); the cluster has 1 GPU in all. Lower workers.count"),
        (gang(1), [node(8)], "never", "the cluster has 0 GPUs in all. Set workers.gpus: 0 to run on CPUs, or start a node with GPUs."),
        (gang(2), [node(4, 1), node(4, 1)], "now", "2 GPUs and 8 CPUs free"),
        (gang(1, cpus=8), [node(4, 1), node(4, 1)], "never", "no node has 8 CPUs (the largest has 4). Lower workers.cpus"),
        (gang(3), [node(8, 1), node(4, 2)], "never", "the nodes together hold 2 such workers."),
        (gang(2), [node(8, 2, free_gpus=1)], "later", "1 GPU and 8 CPUs free now, other work ahead."),
        (gang(3, gpus=0, cpus=2), [node(4), node(2)], "now", "6 CPUs free."),
        (gang(2, gpus=0, cpus=3), [node(4), node(2)], "never", "the nodes together hold 1 such worker."),
        (gang(1), [], "never", "the cluster has no nodes."),
    ],
)
def test_a_gang_fits_now_later_or_never_with_the_reason(workers: WorkerSpec, nodes: list[NodeResources], when: str, because: str) -> None:
    outcome = fit(workers, nodes)
    assert outcome.when == when
    assert because in outcome.because


ELASTIC = WorkerSpec(min=2, max=8, gpus=1, cpus=4)


@pytest.mark.parametrize(
    ("nodes", "when", "because"),
    [
        ([node(8, 2)], "now", "with 2 of 2-8 workers, 2 GPUs and 8 CPUs free."),
        ([node(80, 20)], "now", "with 8 of 2-8 workers, "),
        ([node(8, 2, free_gpus=1)], "later", "needs 2-8 workers x (1 GPU, 4 CPUs); 1 GPU and 8 CPUs free now"),
        ([node(8, 1)], "never", "needs 2-8 workers x (1 GPU, 4 CPUs); the cluster has 1 GPU in all. Lower workers.min or"),
    ],
)
def test_an_elastic_gang_fits_with_its_fewest(nodes: list[NodeResources], when: str, because: str) -> None:
    outcome = fit(ELASTIC, nodes)
    assert outcome.when == when
    assert because in outcome.because


def test_an_elastic_gang_holds_what_it_has_now() -> None:
    held = Reservation("r", ELASTIC, is_placed=True, size=5)
    assert fit(gang(3), [node(32, 8, free_gpus=3)], [held]).when == "now"
    assert fit(gang(4), [node(32, 8, free_gpus=4)], [held]).when == "later"
    assert Reservation("r", ELASTIC).bundles == Reservation("r", ELASTIC, size=1).bundles == 2


def test_a_reservation_counts_before_ray_shows_it_and_once_when_ray_does() -> None:
    placed, fresh = Reservation("r", gang(1), is_placed=True), Reservation("r", gang(1))
    half_used = [node(8, 2, free_cpus=4, free_gpus=1)]
    assert fit(gang(1), half_used, [placed]).when == "now"
    assert fit(gang(1), half_used, [fresh]).when == "later"  # the one in use is another's
    assert fit(gang(1), [node(8, 2)], [fresh]).when == "now"


def test_a_run_in_its_validation_keeps_what_it_reserved() -> None:
    validating = Reservation("r", gang(2), is_placed=True)
    outcome = fit(gang(1), [node(8, 2, free_gpus=1)], [validating])
    assert outcome.when == "later"
    assert "1 run ahead" in outcome.because


@pytest.mark.parametrize(("batch", "world", "sizes"), [(2, 1, [2]), (3, 2, [2, 1]), (9, 4, [3, 2, 2, 2]), (4, 4, [1, 1, 1, 1])])
def test_the_first_ranks_take_one_sample_more(batch: int, world: int, sizes: list[int]) -> None:
    assert rank_sizes(batch, world) == sizes
    positions = [list(rank_positions(batch, world, rank)) for rank in range(world)]
    assert [len(p) for p in positions] == sizes
    assert sum(positions, []) == list(range(batch))  # noqa: RUF017


def test_more_ranks_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers cannot share a global batch of 2"):
        rank_sizes(2, 3)
    with pytest.raises(ValueError, match="at least 1"):
        rank_sizes(0, 1)


def test_a_variant_of_nnunet_stands_in_nnunets_folder_with_its_own_schedule(tiny: Tiny) -> None:
    usual, variant = expand(experiment_of(tiny, trainers=["default", "nnUNetTrainer_5epochs"], folds=[0]))
    assert variant.model_folder == tiny.results / tiny.name / "nnUNetTrainer_5epochs__nnUNetPlans__3d_fullres"
    assert variant.address == "17/3d_fullres/nnUNetTrainer_5epochs/0"
    assert (usual.schedule.epochs, variant.schedule.epochs) == (1000, 5)
    assert usual.run_key != variant.run_key
    assert RunSpec.model_validate_json(variant.model_dump_json()) == variant


def test_expand_gives_one_run_per_combination_in_order(tiny: Tiny) -> None:
    specs = expand(experiment_of(tiny, configurations=["2d", "3d_fullres"], trainers=["default", "da5"], folds=[0, "all"], seeds=[0, 5]))
    assert [s.address for s in specs[:4]] == [f"17/2d/nnUNetTrainer{seed}/{fold}" for seed in ("", "+seed5") for fold in (0, "all")]
    assert len(specs) == len({s.run_key for s in specs}) == len({s.run_folder for s in specs}) == 16
    assert specs[0].model_folder == tiny.results / tiny.name / "nnUNetTrainer__nnUNetPlans__2d"
    assert specs[2].model_folder.name == "nnUNetTrainer__nnUNetPlans__2d__seed5"
    assert specs[1].train_cases == specs[1].val_cases == CASES
    assert specs[0].mlflow_experiment == tiny.name


def test_a_variant_has_model_folders_and_runs_of_its_own_beside_the_usual_settings(tiny: Tiny) -> None:
    (usual,) = expand(experiment_of(tiny))
    plain, seeded = expand(experiment_of(tiny, variant="lowlr", initial_lr=0.001, seeds=[0, 5]))
    assert plain.model_folder.name == "nnUNetTrainer__nnUNetPlans__3d_fullres__lowlr"
    assert seeded.model_folder.name == "nnUNetTrainer__nnUNetPlans__3d_fullres__lowlr__seed5"
    assert [spec.address for spec in (usual, plain, seeded)] == [
        f"17/3d_fullres/nnUNetTrainer{marks}/0" for marks in ("", "+lowlr", "+lowlr+seed5")
    ]
    assert plain.run_key.startswith("d017-3d_fullres-nnUNetTrainer-nnUNetPlans-f0-s0-lowlr-")
    assert (plain.data_digest, plain.schedule.initial_lr) == (usual.data_digest, 0.001)
    (by_name_alone,) = expand(experiment_of(tiny, variant="other"))
    assert by_name_alone.run_key != usual.run_key


def test_a_variant_is_a_column_of_its_own_in_mlflow(tiny: Tiny) -> None:
    (usual,) = expand(experiment_of(tiny))
    (lowlr,) = expand(experiment_of(tiny, variant="lowlr"))
    assert [params_of(spec)["variant"] for spec in (usual, lowlr)] == ["-", "lowlr"]
    assert tags_of(usual)["nnfleet.variant"] == "3d_fullres__nnUNetTrainer__nnUNetPlans"
    assert tags_of(lowlr)["nnfleet.variant"] == "3d_fullres__nnUNetTrainer__nnUNetPlans__lowlr"
    assert run_name(lowlr) == "17/3d_fullres/default+lowlr/0"


def test_a_run_without_a_variant_is_stored_as_before_there_were_any(tiny: Tiny) -> None:
    (usual,) = expand(experiment_of(tiny))
    assert '"variant"' not in usual.model_dump_json()
    (lowlr,) = expand(experiment_of(tiny, variant="lowlr"))
    assert RunSpec.model_validate_json(lowlr.model_dump_json()) == lowlr


def test_a_missing_split_is_made_as_nnunet_makes_it(tiny: Tiny) -> None:
    """The numbers are nnU-Net's: KFold(5, shuffle, random_state=12345) over ten sorted ids, first fold."""
    (spec,) = expand(experiment_of(tiny))
    folds = json.loads((tiny.preprocessed / "splits_final.json").read_text())
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == list(CASES)
    assert spec.val_cases == tuple(folds[0]["val"])
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    assert folds == generate_crossval_split(list(CASES))


def test_an_existing_split_is_never_touched(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": ["case_3", "case_1"], "val": ["case_2"]}])
    before = (tiny.preprocessed / "splits_final.json").read_bytes()
    (spec,) = expand(experiment_of(tiny))
    assert (spec.train_cases, spec.val_cases) == (("case_1", "case_3"), ("case_2",))
    assert (tiny.preprocessed / "splits_final.json").read_bytes() == before


def test_keys_change_with_the_labels_and_not_with_the_workers(tiny: Tiny) -> None:
    (first,) = expand(experiment_of(tiny))
    others: list[dict[str, Any]] = [
        {"workers": {"gpus": 0, "cpus": 2, "count": 2}},
        {"workers": {"gpus": 0, "cpus": 2, "min": 1, "max": 3}},
        {"workers": {"accelerator_type": "A100"}},
        {"loader": {"prefetch": 9}},
        {"loader": {"actors": 40, "placement": "cluster"}},
        {"validation": {"checkpoints": ["final"]}},
        {"tracking": {"uri": "http://elsewhere", "experiment": "x"}},
        {"images": True, "pseudonyms": True, "deterministic": True, "compile": False, "name": "another"},
    ]
    assert {expand(experiment_of(tiny, **keys))[0].run_key for keys in others} == {first.run_key}
    tiny.write_label(first.val_cases[0], [0, 1])
    (relabelled,) = expand(experiment_of(tiny))
    assert relabelled.run_key != first.run_key
    assert relabelled.data_digest != first.data_digest


def test_a_label_of_another_fold_leaves_the_key_alone(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": ["case_1"], "val": ["case_2"]}, {"train": ["case_3"], "val": ["case_4"]}])
    before = expand(experiment_of(tiny, folds=[0, 1]))
    tiny.write_label("case_4", [0, 2])
    after = expand(experiment_of(tiny, folds=[0, 1]))
    assert (before[0].run_key == after[0].run_key, before[1].run_key == after[1].run_key) == (True, False)


def test_all_problems_of_an_experiment_are_told_together(tiny: Tiny) -> None:
    tiny.write_label("case_4", [0, 9])
    with pytest.raises(ConfigError) as caught:
        expand(
            experiment_of(tiny, configurations=["3d_fulres", "2d", "3d_cascade_fullres"], plans=["nnUNetPlans", "nnUNetPlan"], folds=[0, 7])
        )
    text = str(caught.value)
    assert text.startswith("5 problems:\n- ")
    assert "nnUNetPlan.json does not exist. Did you mean 'nnUNetPlans'?" in text
    assert "'3d_fulres' is not in" in text
    assert "needs the segmentations of '3d_lowres', which is not in these plans. Known: 2d, 3d_fullres, small, 3d_cascade" in text
    assert "fold 7 does not exist: splits_final.json of Dataset017_Tiny has 5 folds (0-4)." in text
    assert "case_4 has the value 9, which dataset.json does not name (it names 0, 1, 2)" in text


def test_problems_of_the_data_alone_are_a_data_error(tiny: Tiny) -> None:
    tiny.label_file("case_0").unlink()
    with pytest.raises(DataError, match="the file of case_0 is missing"):
        expand(experiment_of(tiny))


def commit(spec: RunSpec, epochs_done: int, is_final: bool = False) -> None:
    manifest = Manifest(
        checkpoint="final", file="f", epoch=epochs_done - 1, fencing_token=1, ema_pseudo_dice=None, sha256="0" * 64, size_bytes=1
    )
    committed = Committed(
        run_key=spec.run_key,
        epochs_done=epochs_done,
        fencing_token=1,
        history=(),
        final=manifest if is_final else None,
        state_sha256="0" * 64,
        state_size_bytes=1,
    )
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    write_json_atomic(folder.state / f"{committed.stem}.json", committed.model_dump(mode="json"))


def succeed(spec: RunSpec) -> None:
    write_outcome(RunFolder(spec.run_folder), Outcome(job="validation", state="SUCCEEDED", fencing_token=1, message=""))


def test_standing_tells_what_the_run_folder_already_holds(tiny: Tiny) -> None:
    (spec,) = expand(experiment_of(tiny, epochs=3))
    assert progress_of(spec).text == "new"
    commit(spec, 2)
    assert progress_of(spec).text == "continues from epoch 2"
    commit(spec, 3, is_final=True)
    assert progress_of(spec).text == "trained: validation remains"
    for name in ("validation", "validation_best"):
        write_json_atomic(spec.run_folder / name / "summary.json", {})
    assert progress_of(spec).stage == "validates", "nobody has said that the validation is complete"
    succeed(spec)
    assert progress_of(spec) == Progress(stage="finished", epochs_done=3)
    assert expand(experiment_of(tiny, epochs=3)) == [spec]


def test_the_plan_holds_exactly_the_runs_and_survives_json(tiny: Tiny) -> None:
    experiment = experiment_of(tiny, folds=[0, 1, 2], workers={"gpus": 0, "cpus": 1, "count": 2}, epochs=3)
    specs = expand(experiment)
    commit(specs[0], 3, is_final=True)
    for name in ("validation", "validation_best"):
        write_json_atomic(specs[0].run_folder / name / "summary.json", {})
    succeed(specs[0])
    report = plan_report(experiment, specs, [node(3)])
    assert [row.spec for row in report.rows] == specs
    assert [row.progress.text for row in report.rows] == ["finished: skipped", "new", "new"]
    assert [row.fits for row in report.rows] == ["now", "now", "later"]
    assert (report.n_now, report.n_later, report.n_never, report.n_finished) == (1, 1, 0, 1)
    row = report.rows[1]
    assert (row.workers, row.batch_per_rank, row.n_train, row.n_val, row.epochs, row.iterations) == (2, (2, 1), 8, 2, 3, 250)
    assert PlanReport.model_validate_json(report.to_json()) == report


def test_a_replicate_changes_the_run_and_neither_its_folders_nor_its_data(tiny: Tiny) -> None:
    (first,), (second,) = (expand(experiment_of(tiny, **keys)) for keys in ({}, {"replicate": "second"}))
    assert first.run_key != second.run_key
    assert second.model_copy(update={"run_key": first.run_key, "replicate": ""}) == first
    assert run_name(second) == f"{run_name(first)}, replicate second"
    assert "replicate" not in params_of(first)
    assert (params_of(second)["replicate"], tags_of(second)["nnfleet.replicate"]) == ("second", "second")
    assert PlanReport.model_validate_json(plan_report(experiment_of(tiny), [second], [node(2)]).to_json()).rows[0].spec == second


def test_the_plan_shows_and_counts_the_cpus_of_loaders_that_run_anywhere(tiny: Tiny) -> None:
    experiment = experiment_of(
        tiny, workers={"gpus": 0, "cpus": 2, "count": 1}, loader={"actors": 2, "most": 3, "placement": "cluster"}, trainers=["default"]
    )
    (spec,) = expand(experiment)
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    (row,) = plan_report(experiment, [spec], [node(2), node(3)]).rows
    assert (row.fits, row.resources) == ("now", "1 worker x (2 CPUs, 3 CPUs on any node for its loaders)")
    assert plan_report(experiment, [spec], [node(4)]).rows[0].because == (
        "needs 1 worker x (2 CPUs, 3 CPUs on any node for its loaders); the cluster has 4 CPUs in all. "
        "Lower workers.cpus or loader.actors, or start more nodes."
    )


@pytest.mark.parametrize("name", ["../x", "a/b", "x" * 41, "a\nb"])
def test_a_replicates_name_is_plain(tiny: Tiny, name: str) -> None:
    with pytest.raises(ConfigError, match="replicate"):
        experiment_of(tiny, replicate=name)


def test_the_plan_of_an_elastic_run_shows_both_ends(tiny: Tiny) -> None:
    experiment = experiment_of(tiny, workers={"gpus": 0, "cpus": 1, "min": 1, "max": 3}, deterministic=True)
    report = plan_report(experiment, expand(experiment), [node(2)])
    (row,) = report.rows
    assert (row.workers, row.most_workers, row.batch_per_rank, row.batch_per_rank_of_most) == (1, 3, (3,), (1, 1, 1))
    assert (row.fits, row.resources) == ("now", "1-3 workers x (1 CPU)")
    assert row.because == "with 2 of 1-3 workers, 2 CPUs free."
    assert "the same bits are promised for a fixed number of workers" in report.warnings[0]
    assert PlanReport.model_validate_json(report.to_json()) == report


def test_a_run_waits_its_turn_behind_an_earlier_one(tiny: Tiny) -> None:
    first = expand(experiment_of(tiny, workers={"gpus": 0, "cpus": 1, "count": 2}))
    second = expand(experiment_of(tiny, folds=1))
    report = plan_report(experiment_of(tiny), [*first, *second], [node(2, free_cpus=1)])
    assert [row.fits for row in report.rows] == ["later", "later"]
    assert report.rows[1].because == "queued behind 17/3d_fullres/nnUNetTrainer/0."


def test_what_a_run_holds_itself_and_a_living_job_do_not_stand_in_its_way(tiny: Tiny) -> None:
    first, second = expand(experiment_of(tiny, folds=[0, 1], workers={"gpus": 0, "cpus": 2}))
    held = [Reservation(first.run_key, first.workers)]
    assert [row.fits for row in plan_report(experiment_of(tiny), [first, second], [node(2)], Queue(held)).rows] == ["now", "later"]
    rows = plan_report(experiment_of(tiny), [first, second], [node(1)], Queue(held, living={first.run_key})).rows
    assert [row.fits for row in rows] == ["now", "never"]
    assert rows[0].because == "runs already: it is followed."


def test_a_run_that_waits_already_is_planned_with_what_it_would_take_now(tiny: Tiny) -> None:
    """Submitted again with other workers, it gets these; what it asked for before says nothing about them."""
    (spec,) = expand(experiment_of(tiny))
    waits = Waiting(run_key=spec.run_key, address=spec.address, campaign="c1", workers=WorkerSpec(count=1, gpus=0, cpus=1), since_unix=1)
    with_gpu = spec.model_copy(update={"workers": WorkerSpec(count=1, gpus=1, cpus=1)})
    (row,) = plan_report(experiment_of(tiny), [with_gpu], [node(2)], Queue(waiting=[waits])).rows
    assert row.fits == "never"
    on_cpus = spec.model_copy(update={"workers": WorkerSpec(count=1, gpus=0, cpus=1)})
    waits_for_gpu = waits.model_copy(update={"workers": with_gpu.workers})
    (row,) = plan_report(experiment_of(tiny), [on_cpus], [node(2)], Queue(waiting=[waits_for_gpu])).rows
    assert row.fits == "now"


def test_runs_of_other_campaigns_that_wait_go_first(tiny: Tiny) -> None:
    specs = expand(experiment_of(tiny))
    other = Waiting(run_key="o", address="1/x/t/0", campaign="c", workers=gang(1, gpus=0, cpus=2), since_unix=5.0)
    report = plan_report(experiment_of(tiny), specs, [node(2, free_cpus=1)], Queue(waiting=[other]))
    assert [(row.fits, row.because) for row in report.rows] == [("later", "queued behind 1/x/t/0.")]


def test_cases_in_both_parts_of_a_fold_are_a_warning(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": ["case_1", "case_2"], "val": ["case_2"]}])
    report = plan_report(experiment_of(tiny), expand(experiment_of(tiny)), [node(2)])
    assert report.warnings == ("folds: 1 cases of fold 0 are in training and in validation (case_2, ...): their Dice is no test.",)


def test_a_plan_refuses_a_results_folder_that_submit_would_refuse(tiny: Tiny, tmp_path: Path) -> None:
    (spec,) = expand(experiment_of(tiny))
    (tmp_path / "file").touch()
    below_a_file = spec.model_copy(update={"model_folder": tmp_path / "file" / "results"})
    with pytest.raises(DataError, match=rf"cannot be used for {spec.address}: Not a directory .*let it write there, or name another"):
        plan_report(experiment_of(tiny), [below_a_file], [node(2)])
    plan_report(experiment_of(tiny), [below_a_file], [node(2)], Queue(living={spec.run_key}))  # its cluster sees the folder


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_plan_refuses_a_results_folder_without_permission(tiny: Tiny, tmp_path: Path) -> None:
    (spec,) = expand(experiment_of(tiny))
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DataError, match="Permission denied"):
        plan_report(experiment_of(tiny), [spec.model_copy(update={"model_folder": tmp_path / "closed" / "results"})], [node(2)])


def test_a_plan_makes_no_results_folder(tiny: Tiny, tmp_path: Path) -> None:
    (spec,) = expand(experiment_of(tiny))
    plan_report(experiment_of(tiny), [spec.model_copy(update={"model_folder": tmp_path / "not" / "yet"})], [node(2)])
    assert not (tmp_path / "not").exists()


def test_planning_imports_neither_torch_nor_ray_nor_mlflow(tiny: Tiny) -> None:
    code = (
        "import sys; from orchestrator.experiment.expansion import *; from orchestrator.experiment.plan import *\n"
        "from orchestrator.experiment.model import *\n"
        f"expand(single_training(17, '3d_fullres', 0, **{tiny.folders!r}))\n"
        "print({'torch', 'ray', 'mlflow', 'sklearn'} & set(sys.modules))"
    )
    tiny.write_json("splits_final.json", [{"train": ["case_1"], "val": ["case_2"]}])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("kind", "named", "is_doubtful"), [("ext4", "", False), ("nfs4", "nfs4", False), ("fuse.sshfs", "fuse.sshfs", True)]
)
def test_a_plan_names_the_file_system_of_results_on_no_local_disk(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, named: str, is_doubtful: bool
) -> None:
    monkeypatch.setattr(plan, "file_system_of", lambda place: kind)
    experiment = experiment_of(tiny)
    report = plan_report(experiment, expand(experiment), [node(2)])
    assert report.file_system == named
    assert [kind in warning and "hard links" in warning for warning in report.warnings] == [True] * is_doubtful
    show_plan(report)
    assert (f"Results lie on {named}." in " ".join(capsys.readouterr().out.split())) == bool(named)


def test_patients_are_recorded_in_the_run_and_leave_its_key_alone(tiny: Tiny) -> None:
    [plain] = expand(experiment_of(tiny))
    [named] = expand(experiment_of(tiny, patients=dict.fromkeys(CASES, "one")))
    assert named.run_key == plain.run_key
    assert named.patients == dict.fromkeys(plain.val_cases, "one")
    assert "patients" not in plain.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"patients: .*finds no patient in the case id"):
        expand(experiment_of(tiny, patients="nobody"))


def test_candidates_are_part_of_the_run_and_runs_without_any_are_stored_as_before(tiny: Tiny) -> None:
    (plain,) = expand(experiment_of(tiny, validation={"npz": True}))
    (none,) = expand(experiment_of(tiny, validation={"candidates": 0}))
    (three,) = expand(experiment_of(tiny, validation={"candidates": 3}))
    assert plain.run_key == none.run_key != three.run_key
    assert '"candidates"' not in none.model_dump_json()
    assert RunSpec.model_validate_json(three.model_dump_json()) == three
    assert run_differences(plain, three) == "validation.candidates (0, now 3)"
    assert ("candidates" in fixed_params(none), fixed_params(three)["candidates"]) == (False, "3")
    with pytest.raises(ConfigError, match=r"validation\.candidates: .*11.*10"):
        experiment_of(tiny, validation={"candidates": 11})

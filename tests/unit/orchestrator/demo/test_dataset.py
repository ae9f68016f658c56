"""Synthetic subjects of the demo: reproducible, and anatomy."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.demo import DATASET, DemoPaths, build_demo_dataset, demo_folder
from orchestrator.demo.anatomy import load_template, make_subject
from orchestrator.errors import ClusterError, ConfigError

SPACING_MM = 6.0  # coarse: the test takes seconds


def test_a_subject_is_a_pure_function_of_seed_and_number() -> None:
    template = load_template(SPACING_MM)
    first, again, other = (make_subject(template, seed=1, number=n, spacing_mm=SPACING_MM) for n in (0, 0, 1))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


def test_a_subject_has_the_tissues_of_a_head() -> None:
    subject = make_subject(load_template(SPACING_MM), seed=1, number=0, spacing_mm=SPACING_MM)
    grey, white = (subject.labels == 1).sum(), (subject.labels == 2).sum()
    volume_l = (grey + white) * SPACING_MM**3 / 1e6
    assert 1.0 < volume_l < 2.2  # a brain
    assert grey > white > 0
    mean_of = {label: subject.image[subject.labels == label].mean() for label in (0, 1, 2)}
    assert mean_of[0] < mean_of[1] < mean_of[2]  # T1: white matter is brightest


@pytest.mark.parametrize(("cases", "spacing_mm"), [(4, 3.0), (501, 3.0), (5, 0.5), (5, 7.0)])
def test_parameters_out_of_range_are_refused(tmp_path: Path, cases: int, spacing_mm: float) -> None:
    with pytest.raises(ConfigError, match=r"--cases|--spacing-mm"):
        build_demo_dataset(DemoPaths(tmp_path), cases=cases, spacing_mm=spacing_mm)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"file/demo cannot be made: .* Name a folder that you may write"),
        demo_folder(tmp_path / "file" / "demo"),
    ):
        pass


def test_a_demo_that_was_broken_off_is_continued_in_its_folder_beside_files_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with demo_folder(tmp_path) as paths:
        paths.experiment.touch()
        (paths.raw / DATASET).mkdir(parents=True)
    with demo_folder(tmp_path) as paths:
        assert paths.experiment.exists()


def test_the_demo_of_a_version_without_a_mark_is_known_by_its_stamp(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path)
    paths.stamp.parent.mkdir(parents=True)
    paths.stamp.touch()
    paths.experiment.touch()
    with demo_folder(tmp_path):
        paths.stamp.unlink()  # as it is built anew
    with demo_folder(tmp_path):
        pass


def test_of_two_demos_in_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    with (
        demo_folder(tmp_path),
        pytest.raises(ClusterError, match=rf"another one is at work in {tmp_path}: process \d+ on .* Wait until"),
        demo_folder(tmp_path),
    ):
        pass
    with demo_folder(tmp_path):
        pass

"""The GPU's benchmark on this machine: the same code on toy data without a GPU, and that it measures nothing without one."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_sides import Busy, Epochs
from benchmarks.rows import stored


def test_both_sides_train_in_turn_with_prepared_and_with_ready_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "WARM_UP_EPOCHS", 0)
    file = tmp_path / "gpu.json"
    tiny = ["--device", "cpu", "--tiny", "--epochs", "1", "--iterations", "1", "--val-iterations", "1", "--loaders", "0"]
    assert gpu.main([*tiny, "--json", str(file)]) == 0
    rows = stored(file)
    assert [row.what for row in rows] == [
        "epoch, 1 worker, with data loading, s",
        "busy part of the GPU, 1 worker, with data loading",
        "epoch, 1 worker, without data loading, s",
        "busy part of the GPU, 1 worker, without data loading",
    ]
    for row in (rows[0], rows[2]):
        assert row.ours is not None
        assert row.theirs is not None
        assert row.ratio is not None
    assert rows[1].ours is rows[1].theirs is None, "of a CPU nothing is known"
    assert "| epoch, 1 worker, with data loading, s |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_measures_nothing_and_states_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == f"{gpu.NO_GPU}\n"


def test_a_side_that_nnunet_has_not_is_shown_alone() -> None:
    found = {2: {what: [Epochs([3.0, 1.0, 2.0], [0.5, None, 0.7]), Epochs()] for what in gpu.DATA}}
    rows = gpu.table_rows(found)
    assert rows[0].cells == ["epoch, 2 workers, with data loading, s", "2", "-", "-"]
    assert rows[1].cells == ["busy part of the GPU, 2 workers, with data loading", "0.6", "-", "-"]


def test_the_busy_part_is_the_mean_of_what_was_sampled_since(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(torch.device("cpu"))
    assert busy.since(0.0) is None
    busy._samples = [(1.0, 0.0), (2.0, 0.4), (3.0, 0.8)]
    assert busy.since(1.0) == pytest.approx(0.6)

"""Bad and hostile checkpoints, each with the error that answers it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.errors import CheckpointError
from tests.hostile import Evil, Place, Row, check
from trainers.network.checkpoint import read_checkpoint


def _checkpoint(place: Place, content: Any) -> object:
    path = place.base / "checkpoint_best.pth"
    torch.save(content, path)
    return read_checkpoint(path)


def _cut_checkpoint(place: Place) -> object:
    path = place.base / "checkpoint_best.pth"
    torch.save({"network_weights": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    return read_checkpoint(path)


ROWS: tuple[Row, ...] = (
    Row(
        "checkpoint", "truncated", lambda p: _cut_checkpoint(p), CheckpointError, ("checkpoint_best.pth cannot be read", "Restore the file")
    ),
    Row(
        "checkpoint",
        "pickled code",
        lambda p: _checkpoint(p, {"network_weights": {}, "x": Evil(p.mark)}),
        CheckpointError,
        ("names posix.system", "could run code"),
    ),
    Row(
        "checkpoint",
        "other keys",
        lambda p: _checkpoint(p, {"state_dict": {}}),
        CheckpointError,
        ("holds no tensors under 'network_weights'", "Take another one"),
    ),
    Row(
        "checkpoint",
        "weights that are words",
        lambda p: _checkpoint(p, {"network_weights": {"a": "b"}}),
        CheckpointError,
        ("holds no tensors under 'network_weights'",),
    ),
    Row(
        "checkpoint",
        "missing",
        lambda p: read_checkpoint(p.base / "none.pth"),
        CheckpointError,
        ("none.pth cannot be read", "FileNotFoundError"),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)

"""Beginning with another training's weights, beside nnU-Net's own load_pretrained_weights, and what is refused as there."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.nnunet_beside import configuration
from trainers.contract.architecture import NetworkTrial
from trainers.contract.pretrained import pretrained_from
from trainers.errors import ConfigError
from trainers.network.model import build_network, plain_state_dict
from trainers.network.pretrained import load_pretrained
from trainers.network.trial import verdict


def network(seed: int, heads: int = 3, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(configuration(2, (4, 8), **changes), 1, heads)


def saved(path: Path, weights: dict[str, Tensor], **more: Any) -> Path:
    torch.save({"network_weights": weights, **more}, path)
    return path


def nnunet_checkpoint(path: Path) -> Path:
    """As nnUNetTrainer.save_checkpoint writes it, of four classes; its logger and its best score hold numbers of numpy's."""
    scores = {"logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.6)]}, "_best_ema": np.float64(0.6), "current_epoch": 2}
    optimizer = torch.optim.SGD(network(1, heads=4).parameters(), 0.01, momentum=0.99)
    init_args = {"fold": 0, "device": torch.device("cpu")}
    return saved(path, plain_state_dict(network(1, heads=4)), optimizer_state=optimizer.state_dict(), init_args=init_args, **scores)


def test_a_network_begins_with_the_very_weights_that_nnunet_would_give_it(tmp_path: Path) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    file = nnunet_checkpoint(tmp_path / "checkpoint_final.pth")
    ours, theirs, fresh = network(2), network(2), plain_state_dict(network(2))
    load_pretrained(ours, pretrained_from(file))
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(theirs, str(file))
    begun, expected = plain_state_dict(ours), plain_state_dict(theirs)
    assert list(begun) == list(expected)
    assert all(torch.equal(begun[name], expected[name]) for name in expected)
    assert {name for name in begun if torch.equal(begun[name], fresh[name])} >= {name for name in begun if ".seg_layers." in name}
    assert not torch.equal(begun["encoder.stages.0.0.convs.0.conv.weight"], fresh["encoder.stages.0.0.convs.0.conv.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: weights.pop("decoder.transpconvs.0.weight"), "it lacks 1 of 31 weights: decoder.transpconvs.0.weight"),
        (
            lambda weights: weights.update({"decoder.transpconvs.0.weight": torch.zeros(8, 5, 2, 2)}),
            "1 weights have other shapes there: decoder.transpconvs.0.weight (8 x 5 x 2 x 2, here 8 x 4 x 2 x 2)",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_as_by_nnunet_with_what_differs(tmp_path: Path, change: Any, sentence: str) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    weights = dict(plain_state_dict(network(1)))
    change(weights)
    file = saved(tmp_path / "other.pth", weights)
    with pytest.raises(AssertionError):
        load_pretrained_weights(network(2), str(file))
    begun = network(2)
    with pytest.raises(ConfigError) as refusal:
        load_pretrained(begun, pretrained_from(file))
    assert sentence in str(refusal.value)
    assert "nnUNetv2_move_plans_between_datasets" in str(refusal.value)
    assert all(torch.equal(begun.state_dict()[name], weight) for name, weight in network(2).state_dict().items())
    settings = configuration(2, (4, 8))
    trial = NetworkTrial(configuration=settings, channels=1, heads=3, batch=2, pretrained_weights=file)
    assert verdict(trial).unfit_weights == str(refusal.value)
    assert verdict(trial.model_copy(update={"pretrained_weights": saved(file, plain_state_dict(network(1)))})).unfit_weights == ""


def test_weights_that_are_no_checkpoint_are_refused_before_a_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("weights")
    trial = NetworkTrial(configuration=configuration(2, (4, 8)), channels=1, heads=3, batch=2, pretrained_weights=tmp_path / "text.pth")
    assert verdict(trial).unfit_weights.startswith(f"pretrained_weights: {tmp_path / 'text.pth'} cannot be read")


def test_a_file_that_is_another_one_by_now_is_not_loaded(tmp_path: Path) -> None:
    weights = pretrained_from(saved(tmp_path / "w.pth", plain_state_dict(network(1))))
    saved(weights.file, plain_state_dict(network(3)))
    with pytest.raises(ConfigError, match=r"has changed since the run was planned: its SHA-256 is \w{16}\.\.\., not"):
        load_pretrained(network(2), weights)
    weights.file.unlink()
    with pytest.raises(ConfigError, match=r"w\.pth does not exist\. Name a checkpoint \(\.pth\) by a path that the cluster's head"):
        load_pretrained(network(2), weights)


def test_numbers_of_numpy_with_a_forged_type_are_not_made(tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> Any:
            return np._core.multiarray.scalar, (np.dtype("f8"), b"1234567")  # type: ignore[attr-defined]

    file = saved(tmp_path / "forged.pth", plain_state_dict(network(1)), score=Forged())
    with pytest.raises(ConfigError, match="an array of shape"):
        load_pretrained(network(2), pretrained_from(file))

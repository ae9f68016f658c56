"""The sliding window beside nnU-Net's own, on the same network and case."""

from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.export_case import exporter
from trainers.validation.sliding_window import ClassByClassPredictor

HEADS = 5


def logits_by(kind: type[nnUNetPredictor], case: torch.Tensor, patch: tuple[int, ...], axes: tuple[int, ...] | None) -> torch.Tensor:
    labels = {"labels": {"background": 0, **{f"class {value}": value for value in range(1, HEADS)}}}
    model = exporter(labels)
    model.configuration.configuration["patch_size"] = list(patch)
    conv = torch.nn.Conv3d if len(patch) == 3 else torch.nn.Conv2d
    network = conv(1, HEADS, 3, padding=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=3, generator=torch.Generator().manual_seed(1))
    predictor = kind(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, model.plans, model.configuration, None, model.dataset_json, "nnUNetTrainer", axes)
    with torch.inference_mode():
        found = predictor.predict_sliding_window_return_logits(case)
    assert isinstance(found, torch.Tensor)
    return found


def random_case(*shape: int) -> torch.Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("shape", "patch"), [((21, 30, 17), (12, 16, 16)), ((9, 30, 17), (12, 16, 16)), ((3, 30, 40), (16, 24))])
@pytest.mark.parametrize("axes", [None, (0, 1)])
def test_logits_have_nnunets_bits(shape: tuple[int, ...], patch: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    mine, theirs = (logits_by(kind, random_case(*shape), patch, axes) for kind in (ClassByClassPredictor, nnUNetPredictor))
    assert mine.dtype == theirs.dtype
    assert torch.equal(mine, theirs)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is not of 16 bits: of the logits themselves there is one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype != torch.half:
            self.numbers = max(self.numbers, result.numel())
        return result


def test_nothing_is_copied_that_is_larger_than_a_class_or_a_tile() -> None:
    with Largest() as largest:
        logits_by(ClassByClassPredictor, random_case(40, 30, 30), (16, 16, 16), None)
    assert largest.numbers == 40 * 30 * 30


@pytest.mark.parametrize("kind", [ClassByClassPredictor, nnUNetPredictor])
def test_infinite_logits_are_an_error(kind: type[nnUNetPredictor]) -> None:
    with pytest.raises(RuntimeError, match=r"(?i)\binf"):
        logits_by(kind, 1e5 * random_case(12, 16, 16), (12, 16, 16), None)

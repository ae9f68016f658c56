"""Logits and what is known of their case, with an exporter for them, beside nnU-Net's own export of the same logits."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tests.nnunet_beside import KINDS
from tests.unit.trainers.validation.test_spacing import plans
from trainers.validation.export import Exporter

Shape = tuple[int, int, int]
THIN, CUBE = (3.0, 0.7, 0.7), (1.0, 1.0, 1.0)


def exporter(
    kind: dict[str, Any] | None = None,
    spacing: tuple[float, ...] = CUBE,
    transpose: list[int] | None = None,
    function: str = "resample_data_or_seg_to_shape",
    **options: Any,
) -> Exporter:
    """An exporter of plans whose preprocessed cases have this `spacing`; `options` of the resampling beside nnU-Net's usual ones."""
    content = plans("SimpleITKIO", transpose or [0, 1, 2])
    configuration = content["configurations"]["3d_fullres"]
    usual = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration |= {"spacing": list(spacing), "resampling_fn_probabilities": function}
    configuration["resampling_fn_probabilities_kwargs"] = usual | options if function == "resample_data_or_seg_to_shape" else options
    manager = PlansManager(content)
    dataset_json = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", **(kind or KINDS["labels"])}
    return Exporter(manager, manager.get_configuration("3d_fullres"), dataset_json)


def case(cropped: Shape, spacing: tuple[float, ...] = CUBE, margins: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """What preprocessing notes of a case that had so many empty voxels before and behind what it kept; `spacing` in the file's order."""
    before, behind = margins
    return {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(size + before + behind for size in cropped),
        "bbox_used_for_cropping": [[before, before + size] for size in cropped],
        "shape_after_cropping_and_before_resampling": cropped,
        "sitk_stuff": {"spacing": tuple(spacing[::-1]), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)},
    }


def logits_of(heads: int, shape: Shape, seed: int = 1) -> torch.Tensor:
    """Smooth areas with steep borders, as networks predict them; 16 bit, as nnU-Net's predictor gives them."""
    coarse = torch.randn((1, heads, *(math.ceil(size / 4) for size in shape)), generator=torch.Generator().manual_seed(seed))
    return (10 * torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0]).half()


def nnunets(ours: Exporter, logits: torch.Tensor, properties: dict[str, Any]) -> npt.NDArray[Any]:
    labels = ours.plans.get_label_manager(ours.dataset_json)
    arguments = (ours.plans, ours.configuration, labels, properties)
    return np.asarray(convert_predicted_logits_to_segmentation_with_correct_shape(logits, *arguments, num_threads_torch=1))

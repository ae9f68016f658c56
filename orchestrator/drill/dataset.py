"""A preprocessed nnU-Net dataset in miniature, written by ourselves in a second: what a drill trains on. Needs no raw data, no download."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from trainers.storage.files import write_atomic, write_json_atomic

PLANS = "nnUNetPlans"
CONFIGURATION = "drill_3d"
CASES = 4
_SHAPE = (30, 32, 32)
_STAGES = 3


def write_drill_dataset(preprocessed: Path, dataset: str) -> None:
    """Write `dataset` below `preprocessed`: ellipsoids in noise, two folds, one small 3D configuration.

    The content is the same whatever the dataset is called, so two of them train to the same bits under two run keys.
    """
    import blosc2
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    folder = preprocessed / dataset
    data, labels = folder / f"{PLANS}_{CONFIGURATION}", folder / "gt_segmentations"
    for path in (data, labels):
        path.mkdir(parents=True)
    cases = [f"drill_{index}" for index in range(CASES)]
    for index, case_id in enumerate(cases):
        image_CZYX, labels_ZYX = drawn_case(index)
        blosc2.asarray(image_CZYX, urlpath=str(data / f"{case_id}.b2nd"), mode="w")
        blosc2.asarray(labels_ZYX[None], urlpath=str(data / f"{case_id}_seg.b2nd"), mode="w")
        write_atomic(data / f"{case_id}.pkl", pickle.dumps(properties_of(labels_ZYX)))
        sitk.WriteImage(sitk.GetImageFromArray(labels_ZYX.astype(np.uint8)), str(labels / f"{case_id}.nii.gz"))
    write_json_atomic(folder / "dataset.json", dataset_json())
    write_json_atomic(folder / f"{PLANS}.json", plans_json(dataset))
    splits = [{"train": [c for i, c in enumerate(cases) if i % 2 != fold], "val": cases[fold::2]} for fold in range(2)]
    write_json_atomic(folder / "splits_final.json", splits)


def drawn_case(index: int) -> tuple[Any, Any]:
    """Image (1, Z, Y, X) float32, normalised, and labels (Z, Y, X) int16: an ellipsoid with a smaller one inside; pure."""
    rng = np.random.default_rng(999 + index)
    grid = np.meshgrid(*(np.arange(size) for size in _SHAPE), indexing="ij")
    centre = [size * rng.uniform(0.42, 0.58) for size in _SHAPE]

    def inside(radius: float) -> Any:
        return sum(((g - c) / (s * radius)) ** 2 for g, c, s in zip(grid, centre, _SHAPE, strict=True)) < 1

    labels_ZYX = np.zeros(_SHAPE, np.int16)
    labels_ZYX[inside(0.3)] = 1
    labels_ZYX[inside(0.17)] = 2
    image_ZYX = np.array([-1.0, 0.5, 1.5])[labels_ZYX] + rng.normal(0, 0.3, _SHAPE)
    return image_ZYX[None].astype(np.float32), labels_ZYX


def properties_of(labels_ZYX: Any) -> dict[str, Any]:
    """What nnU-Net keeps beside a preprocessed case."""
    locations = {label: np.argwhere(labels_ZYX[None] == label) for label in (1, 2)}
    return {
        "sitk_stuff": {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)},
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": _SHAPE,
        "bbox_used_for_cropping": [[0, size] for size in _SHAPE],
        "shape_after_cropping_and_before_resampling": _SHAPE,
        "class_locations": locations,
    }


def dataset_json() -> dict[str, Any]:
    """nnU-Net's dataset.json."""
    return {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }


def plans_json(dataset: str) -> dict[str, Any]:
    """A plan with one configuration for a few seconds on a CPU."""
    resampling: dict[str, Any] = {}
    for name, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{name}_kwargs"] = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": _STAGES,
            "features_per_stage": [4, 8, 16],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * _STAGES,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (_STAGES - 1)],
            "n_conv_per_stage": [1] * _STAGES,
            "n_conv_per_stage_decoder": [1] * (_STAGES - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24, 24, 24],
        "median_image_size_in_voxels": [float(size) for size in _SHAPE],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "architecture": architecture,
        "batch_dice": False,
    }
    return {
        "dataset_name": dataset,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(_SHAPE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "median": 0.0, "std": 1.0, "min": -3.0, "max": 3.0, "percentile_99_5": 2.5, "percentile_00_5": -2.0}
        },
    }

"""A configuration as nnU-Net wrote it before 2.4, with a small network."""

from typing import Any


def old_configuration(axes: int = 3, network: str = "PlainConvUNet", **changes: Any) -> dict[str, Any]:
    """Three stages, the second thin in its first axis; features are cut off at 20."""
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16][-axes:],
        "median_image_size_in_voxels": [10.0, 20.0, 20.0],
        "spacing": [3.0, 1.0, 1.0][-axes:],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "UNet_class_name": network,
        "UNet_base_num_features": 8,
        "n_conv_per_stage_encoder": [2, 1, 3],
        "n_conv_per_stage_decoder": [2, 1],
        "num_pool_per_axis": [1, 2, 2][-axes:],
        "pool_op_kernel_sizes": [[1, 1, 1][-axes:], [1, 2, 2][-axes:], [2, 2, 2][-axes:]],
        "conv_kernel_sizes": [[1, 3, 3][-axes:], [3, 3, 3][-axes:], [3, 3, 3][-axes:]],
        "unet_max_num_features": 20,
        "batch_dice": True,
        **changes,
    }

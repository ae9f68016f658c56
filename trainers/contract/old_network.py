"""Networks of plans from before nnU-Net 2.4, which name a U-Net and its numbers where later ones have an `architecture`. Pure.

nnU-Net rebuilds the architecture of the two U-Nets of its own planners; the same is done here, with the same result.
Source: nnunetv2/utilities/plans_handling/plans_handler.py (`ConfigurationManager.__init__`).
"""

from collections.abc import Mapping
from typing import Any

from trainers.contract.names import shown

_BLOCKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""Networks that plans of that time name by class alone -> what the encoder's numbers per stage are called today."""
_SETTINGS = (
    *("UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder"),
    *("num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes"),
)


def is_of_old_plans(settings: Mapping[str, Any]) -> bool:
    """True for a resolved configuration that names its network as nnU-Net did before 2.4."""
    return "architecture" not in settings and "UNet_class_name" in settings


def fault_of_old_network(settings: Mapping[str, Any], largest: int, most_stages: int) -> str:
    """Why the network of such a configuration, whose patch_size is sound, cannot be rebuilt; '' when it can."""
    name = settings["UNet_class_name"]
    if not isinstance(name, str) or name not in _BLOCKS:
        return (
            f"UNet_class_name is {shown(name)}, and of plans from before nnU-Net 2.4 only {' and '.join(_BLOCKS)} can be rebuilt: "
            "how any other network is made stands in no plans. Describe it in the configuration as `architecture`"
        )
    if missing := [key for key in ("patch_size", *_SETTINGS) if key not in settings]:
        return f"it has no `architecture`, and to rebuild that of {name} it lacks {', '.join(missing)}"
    for key in _SETTINGS[:2]:
        if type(settings[key]) is not int or not 1 <= settings[key] <= largest:
            return f"{key} must be a whole number from 1 to {largest}, got {shown(settings[key])}"
    stages = settings["n_conv_per_stage_encoder"]
    if not isinstance(stages, list) or len(stages) > most_stages:
        return f"n_conv_per_stage_encoder must be a list of at most {most_stages} whole numbers, got {shown(stages)}"
    return ""


def with_architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as nnU-Net 2.4 and later write it: `architecture` in place of the settings that it is made of."""
    stages, axes = len(settings["n_conv_per_stage_encoder"]), len(settings["patch_size"])
    name = settings["UNet_class_name"]
    base, most = settings["UNet_base_num_features"], settings["unet_max_num_features"]
    arguments = {
        "n_stages": stages,
        "features_per_stage": [min(base * 2**stage, most) for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": settings["conv_kernel_sizes"],
        "strides": settings["pool_op_kernel_sizes"],
        _BLOCKS[name]: settings["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    kept = {key: value for key, value in settings.items() if key not in ("UNet_class_name", *_SETTINGS)}
    return {**kept, "architecture": architecture}

"""The network of a plan's configuration, and its deep-supervision heads.

A U-Net of nnU-Net has one output per decoder stage, finest first. The coarsest one has loss weight 0, so its head never learns: in a
single process it gets no gradient and SGD passes it over. DDP however waits for the gradient of every trainable parameter, hence
`freeze_dead_head`: the head stays in the optimizer and in the checkpoint, under nnU-Net's names and with its initial values.

Sources: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (`build_network_architecture`, `_build_loss`),
nnunetv2/utilities/get_network_from_plans.py, dynamic_network_architectures/building_blocks/unet_decoder.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from trainers.contract.trainer_table import TrainerSettings
from trainers.errors import ConfigError


def build_network(configuration: Mapping[str, Any], num_input_channels: int, num_heads: int, deep_supervision: bool = True) -> nn.Module:
    """The freshly initialised network of a resolved configuration, as nnU-Net builds it; draws from torch's global generator.

    With `deep_supervision` its forward pass returns one tensor of logits (B, num_heads, [Z,] Y, X) per decoder stage, finest first,
    else the finest alone. Raises ConfigError for a class that cannot be found or built.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = _architecture(configuration)
    name = str(architecture["network_class_name"])
    try:
        network = get_network_from_plans(
            name,
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            num_input_channels,
            num_heads,
            allow_init=True,
            deep_supervision=deep_supervision,
        )
    except (ImportError, TypeError, KeyError, AssertionError) as err:
        raise ConfigError(
            f"plans: the network {name} cannot be built from this configuration: {err}. Correct `architecture` in the plans."
        ) from err
    if not isinstance(network, nn.Module):
        raise ConfigError(f"plans: `network_class_name` is {name}, which is no torch network. Correct `architecture` in the plans.")
    return network


def deep_supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """Loss weight of each output, finest first: 1/2^i, the last 0, normalised to sum to 1; a single output has weight 1.

    For a single output nnU-Net's own rule gives 0/0.
    """
    if num_outputs == 1:
        return (1.0,)
    raw = [1 / 2**i for i in range(num_outputs - 1)] + [0.0]
    return tuple(weight / sum(raw) for weight in raw)


def mirroring_axes(configuration: Mapping[str, Any], trainer: TrainerSettings) -> tuple[int, ...] | None:
    """Spatial axes that prediction mirrors, as a checkpoint holds them: those of the training, None for none."""
    return trainer.mirror_axes(len(configuration["patch_size"])) or None


def freeze_dead_head(network: nn.Module, weights: Sequence[float]) -> None:
    """Take every output head without a share in the loss out of training: it keeps its values, gets no gradient and no weight decay.

    `weights` are those of the outputs, finest first; a head beyond them counts as weight 0.
    """
    for index, head in enumerate(_heads(network)):
        if index >= len(weights) or weights[index] == 0:
            head.requires_grad_(False)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, out of DDP's and torch.compile's wrappers in any order."""
    while True:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


def plain_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers under nnU-Net's names, without wrappers' prefixes. The tensors are the network's own, not copies."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in unwrapped(network).state_dict().items()}


def has_batchnorm_or_dropout(network: nn.Module) -> bool:
    """True if a training step depends on how the batch is split over ranks: batch statistics, or random draws per rank."""
    return any(_depends_on_rank(module) for module in network.modules())


def _depends_on_rank(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    drop_path = getattr(module, "drop_prob", 0.0) if type(module).__name__ == "DropPath" else 0.0  # stochastic depth
    return bool(drop_path)


def _heads(network: nn.Module) -> list[nn.Module]:
    """Output heads, finest first; empty for networks that are not U-Nets of dynamic_network_architectures."""
    layers = getattr(getattr(unwrapped(network), "decoder", None), "seg_layers", None)
    return list(reversed(layers)) if isinstance(layers, nn.ModuleList) else []


def _architecture(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    architecture = configuration.get("architecture")
    if not isinstance(architecture, Mapping) or not {"network_class_name", "arch_kwargs", "_kw_requires_import"} <= set(architecture):
        raise ConfigError(
            "plans: the configuration has no complete `architecture` (network_class_name, arch_kwargs, _kw_requires_import). "
            "Run nnUNetv2_plan_experiment for this dataset again."
        )
    return architecture

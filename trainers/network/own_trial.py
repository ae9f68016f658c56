"""Tries the user's own functions and trainers before any worker starts: imported, called as a training calls them, and asked twice."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trainers.contract.architecture import target_scales
from trainers.contract.cascade import network_channels
from trainers.contract.plans import labels_of, load_dataset_json, plans_of
from trainers.contract.run_spec import OwnPart, RunSpec
from trainers.contract.split_batch import rank_sizes
from trainers.data.batches import Batch
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.errors import ConfigError
from trainers.network.learner import as_list
from trainers.network.model import has_batchnorm_or_dropout, plain_state_dict
from trainers.network.own import OwnLoss, check_modes, network_of

SEED = 0


def try_own(spec: RunSpec) -> None:
    """Raise ConfigError for a function of a run that cannot be imported, does not take its arguments, or does not give what is due."""
    trials: dict[OwnPart, Callable[[RunSpec], None]] = {
        "recipe": _try_recipe,
        "network": _try_network,
        "loss": _try_loss,
        "trainer": _try_trainer,
    }
    for part in spec.own.named:
        trials[part](spec)


def _configuration(spec: RunSpec) -> dict[str, Any]:
    return plans_of(spec).configuration(spec.configuration)


def _try_network(spec: RunSpec) -> None:
    """Outputs of the targets' shapes, or the finest alone, on torch's meta device; the same ones in training and in evaluation mode, and
    the same weights with and without deep supervision."""
    configuration, dataset_json = _configuration(spec), load_dataset_json(spec.preprocessed_folder)
    labels = labels_of(dataset_json)
    channels, heads = network_channels(configuration, dataset_json, labels), labels.num_heads
    patch = tuple(configuration["patch_size"])
    name = spec.own.named["network"].name
    trained, predicting = (network_of(spec, configuration, channels, heads, is_deep) for is_deep in (spec.settings.deep_supervision, False))
    if _shapes_of_weights(trained) != _shapes_of_weights(predicting):
        raise ConfigError(
            f"network: {name} has other weights with deep_supervision=False, with which it predicts, than with "
            f"{spec.settings.deep_supervision}, with which it trains. Keep the layers of the lower outputs, and return the finest alone."
        )
    if spec.workers.is_elastic and has_batchnorm_or_dropout(trained):
        raise ConfigError(
            f"workers: {name} has batch normalisation or dropout, with which every change of the number of workers would change the "
            f"training. Set workers.count (such as {spec.workers.least}) instead of workers.min and workers.max."
        )
    expected = [(heads, *(round(size * share) for size, share in zip(patch, scale, strict=True))) for scale in target_scales(configuration)]
    found = [_shapes_of_outputs(network.to("meta"), 1, channels, patch, name) for network in (trained, predicting)]
    if found[0] not in (expected, expected[:1]) or found[1] != expected[:1]:
        raise ConfigError(
            f"network: {name} gives outputs of the shapes {found[0]}, and {found[1]} with deep_supervision=False, for one patch of {patch} "
            f"voxels. Give {expected}, finest first, or {expected[0]} alone; with deep_supervision=False always the latter."
        )
    batch = min(rank_sizes(int(configuration["batch_size"]), spec.workers.most))
    check_modes(name, _shapes_of_outputs(trained, batch, channels, patch, name, training=True), found[0])


def _try_trainer(spec: RunSpec) -> None:
    """As `_try_on_cpu`; raises NotImplementedError for one that needs a GPU to be made, and where a GPU fails."""
    from trainers.network.own_trainer import is_of_gpu

    try:
        _try_on_cpu(spec)
    except RuntimeError as err:
        if is_of_gpu(err):
            raise NotImplementedError(f"{type(err).__name__}: {err}") from err
        raise
    except ConfigError as err:
        if spec.workers.gpus and re.search(r"cuda|triton", str(err.__cause__ or ""), re.IGNORECASE):
            raise NotImplementedError(str(err)) from err
        raise


def _try_on_cpu(spec: RunSpec) -> None:
    """The trainer can be made, saves what can be read without executing anything, and takes that up again; the network that predicts has
    the weights of the one that trains, and takes the patch."""
    from trainers.network.own_trainer import check_state, network_by_trainer, trying

    code, configuration, dataset_json = spec.own.named["trainer"], _configuration(spec), load_dataset_json(spec.preprocessed_folder)
    with trying(spec) as trainer:
        check_state(trainer, spec)
        trained = _shapes_of_weights(trainer.network)
        heads, patch = trainer.label_manager.num_segmentation_heads, tuple(configuration["patch_size"])
        channels = network_channels(configuration, dataset_json, labels_of(dataset_json))
        predicting = network_by_trainer(code, trainer.plans_manager, trainer.configuration_manager, channels, heads)
        if trained != _shapes_of_weights(predicting):
            raise ConfigError(
                f"trainers: build_network_architecture of {code.name} gives a network with other weights with "
                "enable_deep_supervision=False, with which it predicts, than the one that trains. Keep the layers of the lower outputs."
            )
        found = _shapes_of_outputs(predicting.to("meta"), 1, channels, patch, code.name)
        if found != [(heads, *patch)]:
            raise ConfigError(
                f"trainers: the network of {code.name} gives outputs of the shapes {found} with enable_deep_supervision=False, for one "
                f"patch of {patch} voxels. Give {(heads, *patch)} alone."
            )


def _shapes_of_weights(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in plain_state_dict(network).items()}


def _shapes_of_outputs(
    network: torch.nn.Module, batch: int, channels: int, patch: tuple[int, ...], name: str, *, training: bool = False
) -> list[tuple[int, ...]]:
    """Of each output, for one sample."""
    network.train(training)
    try:
        with torch.no_grad():
            return [tuple(output.shape[1:]) for output in as_list(network(torch.zeros((batch, channels, *patch), device="meta")))]
    except Exception as err:
        if isinstance(err, NotImplementedError) or re.search(r"\bmeta\b", str(err), re.IGNORECASE):  # it asked for numbers
            raise NotImplementedError(f"{type(err).__name__}: {err}") from err
        raise ConfigError(f"network: {name} does not take a patch of {patch} voxels: {type(err).__name__}: {str(err)[:500]}.") from err


def _try_loss(spec: RunSpec) -> None:
    """One value per sample, of each sample alone, through which gradients flow."""
    labels = labels_of(load_dataset_json(spec.preprocessed_folder))
    configuration, name = _configuration(spec), spec.own.named["loss"].name
    loss = OwnLoss(spec.own.named["loss"], labels, configuration, (1.0,), 1.0)
    data = open_dataset(spec)
    batch = make_batch(data, spec, "val", 0, 0, [0, 1])
    target = torch.from_numpy(batch.targets[0])
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn((2, labels.num_heads, *target.shape[2:]), generator=generator)
    logits[1] *= 3  # samples that are unlike
    logits.requires_grad_()
    both = loss(logits, target)
    if not both.requires_grad or not _reaches(both, logits):
        raise ConfigError(f"loss: no gradient flows through the values of {name}. Compute them from the logits with torch alone.")
    with torch.no_grad():
        alone = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(2)]).sum()
        both = both.detach()
    if not torch.allclose(both, alone, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ConfigError(
            f"loss: a sample's value by {name} depends on the other samples of its batch ({float(both):g} together, {float(alone):g} "
            "one by one), so it would depend on the number of workers. Compute each sample's value from its own voxels."
        )


def _reaches(value: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a gradient of `value` that is not zero flows to the logits."""
    gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(value, logits, allow_unused=True)
    return gradients[0] is not None and bool(gradients[0].abs().sum() > 0)


def _try_recipe(spec: RunSpec) -> None:
    """Samples of the network's patch, which are the same bits whenever they are asked for."""
    name, data = spec.own.named["recipe"].name, open_dataset(spec)
    first, _, again = (_sample(spec, data, position) for position in (0, 1, 0))
    patch = tuple(_configuration(spec)["patch_size"])
    if first.images.shape[2:] != patch or first.images.shape[1] != again.images.shape[1]:
        raise ConfigError(f"recipe: {name} gives images of {first.images.shape[2:]} voxels, and the network's patch has {patch}.")
    if not _is_same(first, again):
        raise ConfigError(
            f"recipe: {name} is no pure function of the seed: a sample that was made again, after another one, had other values. Draw from "
            "numpy's, torch's and Python's global generators alone, in the transforms' calls, and keep nothing from sample to sample."
        )
    if not np.isfinite(first.images).all():
        raise ConfigError(f"recipe: {name} gives images with values that are no finite numbers.")


def _sample(spec: RunSpec, data: Any, position: int) -> Batch:
    return make_batch(data, spec, "train", 0, 0, [position])


def _is_same(a: Batch, b: Batch) -> bool:
    arrays = zip((a.images, *a.targets), (b.images, *b.targets), strict=True)
    return all(one.shape == other.shape and one.tobytes() == other.tobytes() for one, other in arrays)

"""The user's own network and loss in the place of nnU-Net's; docs/trainers.md is their protocol.

B batch (per rank), C outputs of the network, R target channels, Z Y X voxels.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainers.contract.own_code import call_own, fault_text
from trainers.contract.plans import Labels
from trainers.contract.run_spec import OwnCode, RunSpec
from trainers.errors import ConfigError
from trainers.network.learner import as_list
from trainers.network.model import build_network

log = logging.getLogger(__name__)
MAX_LISTED = 3
OwnLossFunction = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C, [Z,] Y, X) in float32 and target (B, R, [Z,] Y, X) -> the loss of each sample (B,)."""


def network_of(
    spec: RunSpec, configuration: Mapping[str, Any], num_input_channels: int, num_heads: int, deep_supervision: bool
) -> nn.Module:
    """The freshly initialised network of a run: that of the plans, or the user's own. Raises ConfigError where it cannot be built."""
    code = spec.own.network
    if code is None:
        return build_network(configuration, num_input_channels, num_heads, deep_supervision)
    made = call_own(
        "network",
        code,
        configuration=dict(configuration),
        input_channels=num_input_channels,
        output_channels=num_heads,
        deep_supervision=deep_supervision,
    )
    if not isinstance(made, nn.Module):
        raise ConfigError(f"network: {code.name} returned {type(made).__name__}, which is no torch network. Return a torch.nn.Module.")
    return made


@contextmanager
def asked(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Within it, `network` is in training or in evaluation mode. After it, mode, buffers and random generators are as before."""
    was_training, before = network.training, {name: buffer.clone() for name, buffer in network.named_buffers()}
    gpus = sorted({tensor.device.index for tensor in network.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        network.train(training)
        try:
            yield
        finally:
            network.train(was_training)
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    if name in before and before[name].shape == buffer.shape:  # one that the pass has made stays
                        buffer.copy_(before[name])


def check_modes(name: str, training: Sequence[tuple[int, ...]], evaluation: Sequence[tuple[int, ...]]) -> None:
    """Raise ConfigError where a network has other outputs, by their shapes, while it trains than while its epochs are validated."""
    if list(training) != list(evaluation):
        raise ConfigError(
            f"network: {name} gives outputs of the shapes {list(training)} in training mode, and {list(evaluation)} in evaluation mode, "
            "in which each epoch is validated. Give the same ones in both: whether the lower outputs are due is what "
            "`deep_supervision` names, not `self.training`."
        )


def freeze_unused(network: nn.Module, weights: Sequence[float], image_BCZYX: Tensor) -> list[str]:
    """Take no gradient for parameters that the loss does not reach in training mode, such as those of an output of weight 0: DDP would
    wait for them. Returns their names, which are logged.

    `weights` are those of the outputs, finest first. Random generators and buffers stay as they are.
    """
    with asked(network, training=True):
        outputs = as_list(network(image_BCZYX))
        torch.stack([output.float().sum() for output, weight in zip(outputs, weights, strict=True) if weight != 0]).sum().backward()  # type: ignore[no-untyped-call]
    frozen = []
    for name, parameter in network.named_parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen.append(name)
        parameter.grad = None
    if frozen:
        more = f" and {len(frozen) - MAX_LISTED} more" if len(frozen) > MAX_LISTED else ""
        log.warning("parameters that the loss does not reach keep their first values: %s%s", ", ".join(frozen[:MAX_LISTED]), more)
    return frozen


class OwnLoss:
    """A loss per sample, shared out over outputs and ranks as `SegmentationLoss`: any split of the global batch has the same gradient."""

    def __init__(self, code: OwnCode, labels: Labels, configuration: Mapping[str, Any], weights: Sequence[float], share: float) -> None:
        """`weights`: of the network's outputs, finest first; `share`: the number of ranks over the samples of the global batch."""
        self.code = code
        self.function: OwnLossFunction = call_own("loss", code, labels=labels, configuration=dict(configuration))
        self.weights = tuple(weights)
        self.share = share
        if not callable(self.function):
            raise ConfigError(f"loss: {code.name} returned {type(self.function).__name__}. Return a function of (logits, target).")

    def __call__(self, outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """The rank's share of the loss, float32 scalar; as `SegmentationLoss`."""
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        targets = [targets] if isinstance(targets, Tensor) else targets
        used = zip(self.weights, outputs, targets[: len(self.weights)], strict=True)
        losses = [weight * self._of_samples(logits, target).sum() for weight, logits, target in used if weight != 0]
        return torch.stack(losses).sum() * self.share

    def _of_samples(self, logits_BCZYX: Tensor, target_BRZYX: Tensor) -> Tensor:
        try:
            found = self.function(logits_BCZYX.float(), target_BRZYX)
        except Exception as err:
            if isinstance(err, RuntimeError) and "out of memory" in str(err):
                raise
            raise ConfigError(f"loss: {self.code.name} failed: {fault_text(err, self.code)}.") from err
        batch = logits_BCZYX.shape[0]
        if not isinstance(found, Tensor) or found.shape != (batch,):
            what = f"a tensor of the shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"loss: {self.code.name} gave {what} for a batch of {batch}. Return one value per sample, of the shape ({batch},): their "
                "mean over the global batch is then the same for any number of workers."
            )
        return found.float()

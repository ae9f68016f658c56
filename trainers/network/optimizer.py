"""nnU-Net's optimizer, on GPUs in one kernel that sees an overflow on the device: a step then never waits for the GPU.

Source: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (configure_optimizers).
"""

from typing import Any

import torch
from torch import nn

from trainers.contract.run_spec import Schedule

MOMENTUM = 0.99


def sgd(network: nn.Module, schedule: Schedule, *, fused: bool = False) -> torch.optim.SGD:
    """nnU-Net's optimizer over all parameters, frozen ones included, so that its state fits nnU-Net's.

    `fused` updates all of them in one kernel; results then differ by rounding.
    """
    optimizer = torch.optim.SGD(
        network.parameters(),
        schedule.initial_lr,
        momentum=MOMENTUM,
        weight_decay=schedule.weight_decay,
        nesterov=True,
        fused=fused or None,
    )
    _fill_momenta(optimizer)
    return optimizer


def state_of(optimizer: torch.optim.SGD) -> dict[str, Any]:
    """Its state as a checkpoint holds it: by nnU-Net's keys, without the choice of kernels. The tensors are the live ones."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "fused": None} for group in state["param_groups"]]}


def load_state(optimizer: torch.optim.SGD, state: dict[str, Any]) -> None:
    """Restore what `state_of` gave, whatever the kernels it was trained with; its own choice of kernels stays."""
    fused = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, choice in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = choice
    _fill_momenta(optimizer)


def _fill_momenta(optimizer: torch.optim.SGD) -> None:
    """Zeros where the fused kernel would begin with memory as it is: it does so at the first step though the scaler skips that one.

    A momentum of zeros gives the first step that SGD without one takes. PyTorch 2.14 still needs it.
    """
    for group in optimizer.param_groups:
        learning = [parameter for parameter in group["params"] if group["fused"] and parameter.requires_grad]
        for parameter in learning:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

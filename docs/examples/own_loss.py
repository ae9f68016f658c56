"""A loss of your own: `loss: own_loss:focal`. The focal loss (Lin et al. 2017), with the value of each sample by itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def focal(labels: Any, configuration: dict[str, Any], gamma: float = 2.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Called once per worker, with the labels of dataset.json and the configuration of the plans."""
    assert not labels.has_regions, "this loss is for labels that exclude each other"
    ignored = -100 if labels.ignore_label is None else labels.ignore_label

    def loss(logits_BCZYX: Tensor, target_B1ZYX: Tensor) -> Tensor:
        """One value per sample (B,), of one output of the network; nnfleet weighs the outputs and takes the mean."""
        entropy_BZYX = functional.cross_entropy(logits_BCZYX, target_B1ZYX[:, 0].long(), reduction="none", ignore_index=ignored)
        certainty_BZYX = torch.exp(-entropy_BZYX)
        return ((1 - certainty_BZYX) ** gamma * entropy_BZYX).flatten(1).mean(1)

    return loss

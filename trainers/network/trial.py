"""Does a plan's network take one patch of zeros? Asked on torch's meta device, which computes shapes without memory or numbers.

`python -m trainers.network.trial` is a process of its own: a `NetworkTrial` as JSON on stdin, a `NetworkVerdict` as JSON in the last line
of stdout. The meta device loads 150 MB of torch's compiler, which whoever asks would hold for as long as its run trains.
"""

import pydoc
import re
import sys
from pathlib import Path

import torch
from torch import nn

from trainers.contract.architecture import NetworkTrial, NetworkVerdict, target_scales
from trainers.errors import ConfigError, DataError, StorageError
from trainers.network.learner import as_list
from trainers.network.model import build_network, plain_state_dict
from trainers.network.own import network_of
from trainers.network.pretrained import misfit, weights_in

_ADVICE = "Correct `architecture` or `patch_size` in the plans."


def verdict(trial: NetworkTrial) -> NetworkVerdict:
    """Call the user's own functions, build the network and give it zeros. Only an error of these themselves refuses it."""
    if trial.run is not None:
        from trainers.network.own_trial import try_own  # loaders and transforms, a second of imports

        try:
            try_own(trial.run)
        except (ConfigError, DataError) as err:
            return NetworkVerdict(refusal=str(err), is_own=True)
        except (StorageError, MemoryError, OSError, NotImplementedError) as err:
            return NetworkVerdict(unknown=f"{type(err).__name__}: {err}")
        if trial.run.own.trainer is not None:
            return NetworkVerdict()
        if trial.run.own.network is not None:
            return _verdict_on_weights(_own_network(trial), trial.pretrained_weights)
    patch = [int(size) for size in trial.configuration["patch_size"]]
    try:
        scales = target_scales(trial.configuration)
        with torch.device("meta"), torch.no_grad():
            network = build_network(trial.configuration, trial.channels, trial.heads)
            outputs = as_list(network(torch.zeros((trial.batch, trial.channels, *patch))))
    except (ConfigError, DataError) as err:
        return NetworkVerdict(refusal=str(err))
    except (NotImplementedError, ImportError, pydoc.ErrorDuringImport, MemoryError, OSError) as err:
        return NetworkVerdict(unknown=f"{type(err).__name__}: {err}")
    except Exception as err:
        text = f"{type(err).__name__}: {err}"
        if re.search(r"\bmeta\b", text, re.IGNORECASE):  # it asked for numbers, which this device has not
            return NetworkVerdict(unknown=text)
        return NetworkVerdict(refusal=f"the network does not take a patch of {patch} voxels in a batch of {trial.batch}: {text}. {_ADVICE}")
    shapes = [tuple(output.shape[1:]) for output in outputs]
    expected = [(trial.heads, *(round(size * share) for size, share in zip(patch, scale, strict=True))) for scale in scales]
    if shapes != expected:
        text = f"the network's outputs have the shapes {shapes}, and its strides make targets of {expected}"
        return NetworkVerdict(refusal=f"{text}. {_ADVICE}")
    return _verdict_on_weights(network, trial.pretrained_weights)


def _own_network(trial: NetworkTrial) -> nn.Module:
    assert trial.run is not None
    return network_of(trial.run, trial.configuration, trial.channels, trial.heads, trial.run.settings.deep_supervision)


def _verdict_on_weights(network: nn.Module, file: Path | None) -> NetworkVerdict:
    """Whether the network can begin with a checkpoint."""
    if file is None:
        return NetworkVerdict()
    try:
        return NetworkVerdict(unfit_weights=misfit(plain_state_dict(network), weights_in(file), file))
    except ConfigError as err:
        return NetworkVerdict(unfit_weights=str(err))
    except (StorageError, MemoryError, OSError) as err:
        return NetworkVerdict(unknown=f"{type(err).__name__}: {err}")


def main() -> None:
    """Read a trial, print its verdict."""
    found = verdict(NetworkTrial.model_validate_json(sys.stdin.read()))
    sys.stdout.write(f"\n{found.model_dump_json()}\n")


if __name__ == "__main__":
    main()

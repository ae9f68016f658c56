"""What nnU-Net's users type and set by habit, in settings of ours or in one sentence. Pure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment

COMPILE = "nnUNet_compile"
NUM_LOADERS = "nnUNet_n_proc_DA"
"""Environment variables of nnU-Net."""

CONTINUES = "--c: the same command continues a run, with this flag or without it."
VALIDATES_BEST = "--val_best: the best checkpoint is validated beside the final one, in a folder of its own, validation_best."
KEEPS_CHECKPOINTS = (
    "--disable_checkpointing: a checkpoint is kept all the same, as resuming needs it; `nnfleet rm RUN` removes a trial run."
)


def answers(*, continues: bool, val_best: bool, no_checkpoints: bool) -> list[str]:
    """A sentence for each flag that changes nothing here."""
    said = ((continues, CONTINUES), (val_best, VALIDATES_BEST), (no_checkpoints, KEEPS_CHECKPOINTS))
    return [sentence for is_given, sentence in said if is_given]


def refuse_contradictions(*, continues: bool, only_validates: bool, has_weights: bool) -> None:
    """Raise ConfigError for flags that nnU-Net refuses together."""
    if continues and only_validates:
        raise ConfigError("--c: continues a training, and --val does not train. Name one of the two.")
    if has_weights and (continues or only_validates):
        other = "--c" if continues else "--val"
        raise ConfigError(f"-pretrained_weights: a training begins with them, and {other} is for one that has begun. Name one of the two.")


def gpus_on(device: str | None, *, cpu: bool) -> int | None:
    """GPUs of a worker by `-device` and `--cpu`; None where neither says. Raises ConfigError for a device that nnfleet has not."""
    if device not in (None, "cpu", "cuda"):
        apples = "nnfleet does not train on mps, as it runs on Linux alone" if device == "mps" else f"{device!r} is no device"
        raise ConfigError(f"-device: {apples}. Name cuda or cpu; which GPU it is, Ray decides.")
    if device == "cuda" and cpu:
        raise ConfigError("-device: cuda contradicts --cpu. Name one of the two.")
    if device is None and not cpu:
        return None
    return int(device == "cuda")


def settings_by_environment(environment: Mapping[str, str], cpus: int) -> tuple[dict[str, Any], list[str]]:
    """Keys of an experiment for a training whose workers have `cpus` each, and a sentence for each variable that is set."""
    settings: dict[str, Any] = {}
    sentences = []
    if (text := environment.get(COMPILE)) is not None:
        settings["compile"] = is_true(text)
        sentences.append(f"{COMPILE}={text}: compile is {str(settings['compile']).lower()}; CPUs never compile.")
    if (text := environment.get(NUM_LOADERS)) is not None:
        count = _loaders(text, cpus)
        settings |= {"loader": {"actors": count}} if count else {}
        took = f"{count} loader actors for each worker, which has {cpus} CPU cores" if count else "is no number and is not read"
        sentences.append(f"{NUM_LOADERS}={text}: {took}.")
    return settings, sentences


def unread(environment: Mapping[str, str], experiment: "Experiment") -> list[str]:
    """A sentence for each variable that is set and that an experiment file, which is the same everywhere, does not obey."""
    keys = {
        COMPILE: ("compile" in experiment.model_fields_set, "compile: ..."),
        NUM_LOADERS: ("actors" in experiment.loader.model_fields_set, "loader: {actors: ...}"),
    }
    return [
        f"{name} is set, and an experiment file does not read it: write `{key}` into the file."
        for name, (is_written, key) in keys.items()
        if name in environment and not is_written
    ]


def is_true(text: str) -> bool:
    """As nnU-Net reads a switch: true, 1 or t, and all else is off."""
    return text.lower() in ("true", "1", "t")


def _loaders(text: str, cpus: int) -> int:
    """Loader actors of a worker for nnU-Net's number of processes: one at least, and one core is left to the steps; 0 for no number."""
    return max(1, min(int(text), cpus - 1)) if text.strip().isdecimal() and text.isascii() else 0

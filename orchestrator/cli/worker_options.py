"""Options that say what workers a command takes, and errors about them in the words of its command line."""

import contextlib
import re
from collections.abc import Iterator, Mapping

from orchestrator.cli.nnunet_habits import gpus_on
from orchestrator.errors import NnfleetError

WORKER_OPTIONS = {
    "Set workers.gpus: 0 to run on CPUs": "Add --cpu to run on CPUs",
    "Ask for less under `workers`": "Ask for less (--num-workers, --cpus, --cpu)",
    "workers.count": "--num-workers",
    "workers.cpus": "--cpus",
    "workers.gpus": "--cpu",
}
"""Keys of an experiment's `workers` in the words of a command line, which has no file."""


@contextlib.contextmanager
def own_words(options: Mapping[str, str] = WORKER_OPTIONS) -> Iterator[None]:
    """Errors inside about keys of an experiment file speak of this command's options."""
    try:
        yield
    except NnfleetError as err:
        raise type(err)(in_words_of_the_command_line(str(err), options)) from err


def in_words_of_the_command_line(text: str, options: Mapping[str, str]) -> str:
    """An error about keys of the experiment file as one about the options of this command."""
    for key, words in options.items():
        text = text.replace(f"`{key[:-1]}`", f"`{words[:-1]}`") if key[-1] == ":" else text  # set `epochs`
        place = re.escape(key) if key[-1] != ":" else rf"{re.escape(key[:-1])}(\.\d+)?:"  # `folds.0:` is the first of the folds
        text = re.sub(rf"(?<![\w./-]){place}", words, text)
    return text


def worker_options(num_workers: int | None, cpu: bool, cpus: int | None, device: str | None = None) -> dict[str, int]:
    """The `workers` of the experiment: only what was asked for, so that defaults live in one place."""
    options: dict[str, int] = {}
    if num_workers is not None:
        options["count"] = num_workers
    if (gpus := gpus_on(device, cpu=cpu)) is not None:
        options["gpus"] = gpus
    if cpus is not None:
        options["cpus"] = cpus
    return options

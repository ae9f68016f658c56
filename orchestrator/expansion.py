"""Which runs an experiment is, read from its data."""

from orchestrator.experiment import Experiment
from trainers.spec.run_spec import RunSpec


def expand(experiment: Experiment) -> list[RunSpec]:
    """The runs of an experiment in the order of submission. Raises ConfigError or DataError that lists every problem."""
    raise NotImplementedError

"""Successive halving: which models of a comparison go on after a rung. A pure policy over what their runs have reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.run.halving import Judged


@dataclass(frozen=True)
class Contestant:
    """A run of a comparison, at one look and for one rung."""

    model: str
    """Its model, without fold and seed."""
    address: str
    is_open: bool
    """It is followed and has not ended."""
    has_reached: bool
    """As many epochs are committed as the rung has."""
    value: float | None = None
    """Its EMA pseudo-Dice at the very epoch of the rung; None: it had seen no foreground by then."""
    was_stopped: bool = False
    """It was stopped, not by halving, and may be continued: a person's stop is no verdict on its model."""


def judged(runs: Sequence[Contestant], keep: float) -> tuple[list[Judged], list[str]] | None:
    """The models, best first, and those that are not compared; None while a run is waited for, or there is nothing to compare.

    A run that has reached the rung counts, whatever became of it since. A model of which a run ended before is not compared: neither is
    it stopped, nor are its other runs waited for. One of which a run was stopped by a person before is waited for. The best
    ceil(n * keep) of n models go on; of equal ones the one that stands first in `runs`, and one without foreground comes last.
    """
    compared = those_compared(runs)
    models_compared = {run.model for run in compared}
    out = list(dict.fromkeys(run.model for run in runs if run.model not in models_compared))
    if not all(run.has_reached for run in compared) or not any(run.is_open for run in compared):
        return None
    models = [_judged(model, [run for run in compared if run.model == model]) for model in dict.fromkeys(run.model for run in compared)]
    ranked = sorted(models, key=lambda model: math.inf if model.value is None else -model.value)
    most = num_kept(len(ranked), keep)
    return [model.model_copy(update={"is_kept": place < most}) for place, model in enumerate(ranked)], out


def those_compared(runs: Sequence[Contestant]) -> list[Contestant]:
    """The runs of the models that are compared: of which no run ended for good before the rung."""
    out = {run.model for run in runs if not (run.is_open or run.was_stopped or run.has_reached)}
    return [run for run in runs if run.model not in out]


def handovers(waiting: Sequence[str], values: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """Which run that has reached a rung leaves its workers to which one that waits for some: one to each, so no more than wait, and first
    those whose further epochs are least likely to be of use.

    `waiting`: first in line first. `values`: of those that can leave theirs, the EMA pseudo-Dice at the rung. Returns (giver, taker).
    """
    worst_first = sorted(values, key=lambda key: -math.inf if (value := values[key]) is None else value)
    return list(zip(worst_first, waiting, strict=False))


def num_kept(count: int, keep: float) -> int:
    """How many of `count` models go on: ceil(count * keep), without the rounding of the product."""
    return math.ceil(count * keep - 1e-9)


def _judged(model: str, runs: Sequence[Contestant]) -> Judged:
    values = [run.value for run in runs if run.value is not None]
    mean = math.fsum(values) / len(values) if len(values) == len(runs) else None
    return Judged(model=model, value=mean, runs={run.address: run.value for run in runs})

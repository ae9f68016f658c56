"""Successive halving: which models of a comparison go on after a rung. A pure policy over what their runs have reached."""

import math
from collections.abc import Sequence
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
    is_paused: bool = False
    """It was stopped, not by halving, and may be continued: a person's stop is no verdict on its model."""


def judged(runs: Sequence[Contestant], keep: float) -> tuple[list[Judged], list[str]] | None:
    """The models, best first, and those that are not compared; None while a run is waited for, or there is nothing to compare.

    A run that has reached the rung counts, whatever became of it since. A model of which a run ended before is not compared: neither is
    it stopped, nor are its other runs waited for. One of which a run was stopped by a person before is waited for. The best
    ceil(n * keep) of n models go on; of equal ones the one that stands first in `runs`, and one without foreground comes last.
    """
    out = list(dict.fromkeys(run.model for run in runs if not (run.is_open or run.is_paused or run.has_reached)))
    compared = [run for run in runs if run.model not in out]
    if not all(run.has_reached for run in compared) or not any(run.is_open for run in compared):
        return None
    models = [_judged(model, [run for run in compared if run.model == model]) for model in dict.fromkeys(run.model for run in compared)]
    ranked = sorted(models, key=lambda model: math.inf if model.value is None else -model.value)
    most = num_kept(len(ranked), keep)
    return [model.model_copy(update={"is_kept": place < most}) for place, model in enumerate(ranked)], out


def num_kept(count: int, keep: float) -> int:
    """How many of `count` models go on: ceil(count * keep), without the rounding of the product."""
    return math.ceil(count * keep - 1e-9)


def _judged(model: str, runs: Sequence[Contestant]) -> Judged:
    values = [run.value for run in runs if run.value is not None]
    mean = math.fsum(values) / len(values) if len(values) == len(runs) else None
    return Judged(model=model, value=mean, runs={run.address: run.value for run in runs})

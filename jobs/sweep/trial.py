"""Trials of a sweep: settings drawn at random, and what they reached."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jobs.errors import InputError
from jobs.settings import build
from jobs.sweep.settings import Space, SweepSettings
from jobs.train.settings import TrainSettings

METRIC = "validation_nats"


# Of another kind, a likelihood's nats do not compare.
UNCOMPARABLE = ("likelihood", "dataset", "model", "images_version", "seed", "workers", "run")


@dataclasses.dataclass(frozen=True)
class Trial:
    """drawn: by dotted name. settings: of the whole training."""

    number: int
    drawn: dict[str, Any]
    settings: TrainSettings


@dataclasses.dataclass(frozen=True)
class Tried:
    """How far a trial got: its best validation in nats (None: it failed), and its epochs."""

    trial: Trial
    validation_nats: float | None
    epochs: int
    error: str | None = None


def draw(settings: SweepSettings) -> list[Trial]:
    """Draw the trials, a function of the settings; equal draws come once.

    Raises InputError where a setting is unknown or its values do not fit.
    """
    for name in settings.search:
        if name.split(".")[0] in UNCOMPARABLE:
            raise InputError(f"search: {name}: trials that differ in it do not compare")
    generator = np.random.default_rng(settings.seed)
    found: dict[str, Trial] = {}
    for number in range(settings.trials):
        drawn = {name: _drawn(space, generator) for name, space in settings.search.items()}
        values = settings.train.model_dump(mode="json")
        for name, value in drawn.items():
            _set(values, name, value)
        trial = Trial(number, drawn, build(TrainSettings, values))
        found.setdefault(repr(trial.settings.fingerprint_of()), trial)
    return list(found.values())


def _drawn(space: Space, generator: np.random.Generator) -> Any:
    if space.choice is not None:
        return space.choice[int(generator.integers(len(space.choice)))]
    if space.uniform is not None:
        return float(generator.uniform(*space.uniform))
    assert space.log_uniform is not None
    low, high = (math.log(end) for end in space.log_uniform)
    return float(math.exp(generator.uniform(low, high)))


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node = values
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise InputError(f"search: unknown setting {name!r}")
    if last not in node:
        raise InputError(f"search: unknown setting {name!r}; known: {', '.join(sorted(node))}")
    node[last] = value

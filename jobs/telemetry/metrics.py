"""What a training tells while it runs: one stream of metrics, and who listens to it.

A metric has a name, a value, a unit and a step. Listeners must not hold up or end a training:
what one of them raises is logged, and it is left out from then on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

log = logging.getLogger("latentlake")

# Of every metric that a training gives: its unit.
UNITS = {
    "train_loss_nats": "nats",
    "train_nats": "nats",
    "train_recon_nats": "nats",
    "train_kl_nats": "nats",
    "validation_nats": "nats",
    "validation_kl_nats": "nats",
    "kl_nats_D": "nats",
    "active_units": "latents",
    "grad_norm": "nats",
    "learning_rate": "1",
    "images_per_s": "images/s",
    "data_wait_share": "1",
    "progress": "1",
    "memory_gib": "GiB",
    "seconds": "s",
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """value: a number, or a list with one for each latent dimension."""

    name: str
    value: Any
    unit: str
    step: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step that was skipped, and the ids of its whole batch."""

    step: int
    reason: str
    image_ids: list[str]


class Listener:
    """Hears a training, as far as it cares. Calls come from its loop: be quick, or do the work
    elsewhere."""

    def metrics(self, metrics: Sequence[Metric]) -> None:
        """Of one step."""

    def bad_step(self, bad: BadStep) -> None:
        """Take a step that left the weights as they were."""

    def note(self, text: str) -> None:
        """Say a sentence to people."""

    def pictures(self, name: str, png: bytes, step: int) -> None:
        """Take pictures, as a PNG."""

    def flush(self) -> None:
        """Write what waits: an epoch is over, or something went wrong, and others may look."""

    def close(self) -> None:
        """Write what waits, and end."""


class Telemetry:
    """Passes a training's metrics on to all that listen."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = list(listeners)

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def step(self, entry: Mapping[str, Any]) -> None:
        """Of the epoch so far."""
        self._tell("metrics", metrics_of(entry))

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Of a whole epoch, its validation and what each latent dimension does among it."""
        self._tell("metrics", metrics_of(entry))
        self._tell("flush")

    def bad_step(self, step: int, reason: str, image_ids: list[str]) -> None:
        """Report a step that left the weights as they were."""
        self._tell("bad_step", BadStep(step, reason, image_ids))
        self._tell("flush")

    def note(self, text: str) -> None:
        """Say a sentence to people: what was chosen, what went wrong and how it goes on."""
        log.info("%s", text)
        self._tell("note", text)

    def pictures(self, name: str, png: bytes, step: int) -> None:
        """Report pictures, as a PNG."""
        self._tell("pictures", name, png, step)

    def close(self) -> None:
        """Close all listeners."""
        self._tell("close")

    def _tell(self, what: str, *arguments: Any) -> None:
        for listener in list(self._listeners):
            try:
                getattr(listener, what)(*arguments)
            except Exception as error:  # noqa: BLE001
                # Any of many foreign libraries; a chart is not worth a training.
                log.warning("telemetry: %s is left out: %s", type(listener).__name__, error)
                self._listeners.remove(listener)


def metrics_of(entry: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics of an entry; what has no unit is none, nor is null, nor what is not
    finite."""
    return [
        Metric(name, entry[name], unit, entry["step"], entry["epoch"])
        for name, unit in UNITS.items()
        if entry.get(name) is not None and np.all(np.isfinite(entry[name]))
    ]

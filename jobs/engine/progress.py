"""How far a job is: units, rows a second, refusals and the time left, for a log or a screen."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from typing_extensions import override

log = logging.getLogger("latentlake")

REPORT_EVERY_S = 5.0

Listener = Callable[["Progress"], None]
_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every report of jobs that run in this process meanwhile."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Progress:
    """Of one job's units. planned: how many have been handed out so far."""

    def __init__(self, title: str, rows_counted: str) -> None:
        self.title = title
        self.rows_counted = rows_counted
        self.planned = 0
        self.all_planned = False
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.started = self.last_report = time.monotonic()

    def add(self, counts: Mapping[str, int]) -> None:
        """One more unit, with what it counted."""
        self.done += 1
        self.counts.update(counts)

    @property
    def seconds(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self.started

    @property
    def rows_per_s(self) -> float:
        """Return the rows a second so far."""
        return self.counts[self.rows_counted] / max(self.seconds, 1e-9)

    @property
    def share(self) -> float | None:
        """Of the units that are done; None while more are being planned."""
        return self.done / self.planned if self.all_planned and self.planned else None

    @property
    def seconds_left(self) -> float | None:
        """Estimate the seconds that are left; None where the number of units is not known."""
        share = self.share
        return self.seconds * (1 / share - 1) if share else None

    @property
    def _left(self) -> list[str]:
        left = self.seconds_left
        return [] if left is None else [f"{int(left) // 60}:{int(left) % 60:02d} left"]

    def __str__(self) -> str:
        more = "" if self.all_planned else "+"
        parts = [
            f"{self.title}: {self.done} of {self.planned}{more} units",
            f"{self.counts[self.rows_counted]:,} {self.rows_counted}",
            f"{self.rows_per_s:,.0f}/s",
        ]
        if self.counts["refused"]:
            parts.append(f"{self.counts['refused']:,} refused")
        return ", ".join(parts + self._left)

    def report(self) -> None:
        """Tells the log and the listeners, at most once in REPORT_EVERY_S."""
        now = time.monotonic()
        if now - self.last_report > REPORT_EVERY_S:
            self.last_report = now
            self._tell()

    def finished(self) -> None:
        """Say the last word: for listeners always, in the log where the work took a while."""
        self.all_planned = True
        self._tell(aloud=self.seconds > REPORT_EVERY_S)

    def _tell(self, *, aloud: bool = True) -> None:
        if aloud:
            log.info("%s", self)
        for listener in list(_listeners):
            listener(self)


class FollowedProgress(Progress):
    """Of a job that runs elsewhere, in its own words."""

    def __init__(self, title: str, text: str, done: int, planned: int) -> None:
        super().__init__(title, "")
        self.text = text
        self.done, self.planned = done, planned

    def __str__(self) -> str:
        return self.text

    def tell_listeners(self) -> None:
        """Not the log, which has it already."""
        self._tell(aloud=False)


class TrainingProgress(Progress):
    """Of a training, by what its first rank tells."""

    def __init__(self, title: str) -> None:
        super().__init__(title, "images")
        self.values: dict[str, Any] = {}
        self._first: tuple[float, float] | None = None  # when and how far it began, or went on
        self.planned, self.all_planned = 1000, True

    def tell(self, values: Mapping[str, Any]) -> None:
        """Take the newest metrics, by name; `progress` among them is the share of all steps."""
        if values["step"] == self.values.get("step"):
            return
        self.values = dict(values)
        if self._first is None:
            self._first = (time.monotonic(), self._done)
        self.done = int(self.planned * self._done)
        self.report()

    @property
    def _done(self) -> float:
        return self.values.get("progress", 0.0)

    @property
    @override
    def seconds_left(self) -> float | None:
        if self._first is None or self._done <= self._first[1]:
            return None
        since, begun = self._first
        return (time.monotonic() - since) * (1.0 - self._done) / (self._done - begun)

    def __str__(self) -> str:
        parts = [f"{self.title}: {self._done:.0%}"]
        for name, form in (
            ("epoch", "epoch {:,}"),
            ("step", "step {:,}"),
            ("images_per_s", "{:,.0f} images/s"),
            ("train_nats", "train {:,.1f} nats"),
            ("validation_nats", "validation {:,.1f} nats"),
        ):
            if name in self.values:
                parts.append(form.format(self.values[name]))
        return ", ".join(parts + self._left)

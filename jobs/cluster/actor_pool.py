"""A pool of Ray actors that units are handed to, in bounded waves, with bounded waits."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from jobs.engine.interruptible import apart
from jobs.engine.plan import Unit
from jobs.engine.progress import Progress
from jobs.errors import JobError, LatentlakeError, StorageError

log = logging.getLogger("latentlake")

IN_FLIGHT = 2  # units handed to an actor at once, so that it never waits for the driver
MAX_ATTEMPTS = 4
NO_PROGRESS_S = 1800.0
WAIT_SLICE_S = 0.5


def drain(actors: Sequence[Any], units: Iterator[Unit], progress: Progress, *, keep: int) -> None:
    """Run all units on the actors, and end these.

    Each actor has `ping` and `run`. keep: as many stay to the end; of the others those that have
    nothing to do any more give their CPUs back. Raises the first unit's error.
    """
    pool = _Pool(actors, units, progress, keep)
    try:
        apart(pool.drain, pool.stopped.set)
    finally:
        for actor in list(pool.actors.values()):
            ray.kill(cast(Any, actor))


class _Pool:
    def __init__(
        self, actors: Sequence[Any], units: Iterator[Unit], progress: Progress, keep: int
    ) -> None:
        self.actors = dict(enumerate(actors))
        self.coming = units
        self.progress = progress
        self.keep = keep
        self.all_came = False
        self.stopped = threading.Event()
        self.again: deque[Unit] = deque()
        self.running: dict[ray.ObjectRef, tuple[Unit, int]] = {}
        self.attempts: dict[str, int] = {}
        self.load = dict.fromkeys(self.actors, 0)
        # An actor gets no work until it answers, at first and when it was lost: what waits for an
        # actor that never came up, because its node is gone, would wait for ever.
        self.resting = {index: actor.ping.remote() for index, actor in self.actors.items()}

    def drain(self) -> None:
        last_done = time.monotonic()
        while not self.stopped.is_set():
            self._wake()
            self._hand_out()
            if not self.running and not self.again and len(self.resting) < len(self.actors):
                self.progress.finished()
                return
            if self._collect():
                last_done = time.monotonic()
            self.progress.report()
            if time.monotonic() - last_done > NO_PROGRESS_S:
                raise JobError(
                    f"{self.progress.title}: no unit finished in {NO_PROGRESS_S:.0f} s; run it "
                    "again"
                )

    def _wake(self) -> None:
        still: dict[int, ray.ObjectRef] = {}
        for index, ref in self.resting.items():
            answered, _ = ray.wait([ref], timeout=0)
            if not answered:
                still[index] = ref
                continue
            try:
                ray.get(ref, timeout=60)
            except RayError:
                still[index] = self.actors[index].ping.remote()  # lost once more
        self.resting = still

    def _hand_out(self) -> None:
        for index, actor in self.actors.items():
            while (
                index not in self.resting
                and self.load[index] < IN_FLIGHT
                and (unit := self._next()) is not None
            ):
                self.progress.planned += unit.unit_id not in self.attempts
                self.running[actor.run.remote(unit)] = (unit, index)
                self.load[index] += 1
        self.progress.all_planned = self.all_came
        if self.all_came and not self.again and not self.stopped.is_set():
            self._give_back()

    def _next(self) -> Unit | None:
        if self.again:
            return self.again.popleft()
        unit = next(self.coming, None)
        self.all_came = unit is None
        return unit

    def _give_back(self) -> None:
        # Those that have found no room yet go first: nothing should be scaled up for them.
        idle = [index for index, count in self.load.items() if not count]
        for index in sorted(idle, key=lambda index: index not in self.resting):
            if len(self.actors) <= self.keep:
                return
            ray.kill(cast(Any, self.actors.pop(index)))
            self.load.pop(index)
            self.resting.pop(index, None)

    def _collect(self) -> bool:
        """Take what has ended within a moment; whether a unit is done."""
        watched = [*self.running, *(() if self.running else self.resting.values())]
        ready, _ = ray.wait(watched, num_returns=1, timeout=WAIT_SLICE_S)
        done = False
        for ref in ready:
            if ref not in self.running:
                continue  # an actor that rested has answered
            unit, index = self.running.pop(ref)
            self.load[index] -= 1
            try:
                counts = self._result(ref, unit)
            except _WorkerLost:
                self.resting.setdefault(index, self.actors[index].ping.remote())
                counts = None
            if counts is None:
                self.again.append(unit)
                continue
            done = True
            self.progress.add(counts)
        return done

    def _result(self, ref: ray.ObjectRef, unit: Unit) -> dict[str, int] | None:
        """Return the unit's counts; None where its storage failed and it has attempts left."""
        try:
            return ray.get(ref, timeout=60)
        except RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, LatentlakeError):
                raise
            if not isinstance(cause, StorageError) or not self._may_try(unit, str(cause)):
                raise cause from None
        except RayError as error:
            if not self._may_try(unit, "its worker was lost"):
                raise JobError(
                    f"unit {unit.unit_id} lost its worker {MAX_ATTEMPTS} times: {error}"
                ) from error
            raise _WorkerLost from error
        return None

    def _may_try(self, unit: Unit, why: str) -> bool:
        self.attempts[unit.unit_id] = self.attempts.get(unit.unit_id, 1) + 1
        if self.attempts[unit.unit_id] > MAX_ATTEMPTS:
            return False
        log.warning("unit %s: %s; attempt %d", unit.unit_id, why, self.attempts[unit.unit_id])
        time.sleep(0.2)
        return True


class _WorkerLost(Exception):
    """The unit's worker died; the unit may be tried again, elsewhere for now."""

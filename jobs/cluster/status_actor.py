"""What the ranks of a training tell its driver: an actor of its own process.

Of a module that brings neither torch nor Ray Train, which its process would only wait for.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray

from jobs.errors import JobError, LatentlakeError

SAME_CRASHES = 3


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class StatusActor:
    """Where the first rank writes what the driver shows, and any rank why all should end."""

    def __init__(self) -> None:
        self.life = uuid.uuid4().hex  # a lost one is made again, and knows nothing
        self.last: dict[str, Any] = {}
        self.notes: list[str] = []
        self.error: LatentlakeError | None = None
        self.began = 0
        self.led_by: Any = None
        self.crashes: list[tuple[int, int, str]] = []

    def tell(self, metrics: dict[str, Any]) -> None:
        """Take the newest metrics."""
        self.last = self.last | metrics

    def say(self, text: str) -> None:
        """Take a line for the log."""
        self.notes.append(text)

    def read(self, life: str, notes: int) -> tuple[str, dict[str, Any], list[str]]:
        """Its life, the newest metrics, and the notes after the first `notes` of that life."""
        return self.life, self.last, self.notes[notes if life == self.life else 0 :]

    def follow(self, controller: Any) -> None:
        """Follow the controller of the worker group, an actor of Ray Train."""
        self.led_by = controller

    def controller(self) -> Any:
        """Return the worker group's controller, once it is known."""
        return self.led_by

    def fail(self, error: LatentlakeError) -> None:
        """Take the error that ended the training."""
        self.error = self.error or error

    def begin(self, step: int) -> None:
        """Note that a group goes on from a step."""
        self.began = step

    def crash(self, rank: int, text: str) -> None:
        """Take an error of a rank that nobody foresaw.

        The same one again and again, with no checkpoint between, is a fault of the code or of the
        machine, which no further attempt mends.
        """
        crash = (rank, self.began, text)
        self.crashes.append(crash)
        if self.crashes.count(crash) >= SAME_CRASHES:
            self.fail(JobError(f"training failed {SAME_CRASHES} times alike: {text}"))

    def failure(self) -> LatentlakeError | None:
        """Return the error that ended the training, if one did."""
        return self.error

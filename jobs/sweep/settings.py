"""Settings of a sweep: what is tried, and where values come from."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from jobs.settings import Positive, Settings
from jobs.train.settings import TrainSettings


class Space(Settings):
    """Where a sweep draws one setting from; exactly one of these."""

    choice: list[Any] | None = Field(default=None, min_length=1, description="one of these")
    uniform: tuple[float, float] | None = Field(default=None, description="between these")
    log_uniform: tuple[float, float] | None = Field(
        default=None, description="between these, its logarithm uniform"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Space:
        given = [value for value in vars(self).values() if value is not None]
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, log_uniform")
        for ends in (self.uniform, self.log_uniform):
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"the lower end comes first, got {list(ends)}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs positive ends, got {list(self.log_uniform)}")
        return self


class SweepSettings(Settings):
    """Trainings of one model with settings drawn at random; the best one becomes the bundle."""

    train: TrainSettings = Field(description="what all trials have in common")
    search: dict[str, Space] = Field(
        min_length=1, description="by setting (dotted: objective.beta), where its value comes from"
    )
    trials: Positive = Field(default=16, description="how many settings are tried")
    concurrent: int | None = Field(
        default=None, ge=1, description="trials at a time; as many as there are CPUs if none"
    )
    grace_epochs: Positive = Field(default=1, description="before a trial may be given up")
    reduction: int = Field(
        default=3, ge=2, description="of so many trials that got as far, one goes on (ASHA)"
    )
    seed: int = Field(default=0, ge=0, description="of the draws")

"""What a night is told: the settings of its jobs, and when it comes, retrains and gives up."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import Self

from pydantic import Field, field_validator, model_validator

from jobs.config import EmbedSettings, RaySettings, StageSettings, TrainSettings
from jobs.errors import InputError
from jobs.settings import Settings, build, load_yaml


class ScheduleSettings(Settings):
    """When `latentlake serve` starts a night by itself."""

    cron: str = Field(description="minute, hour, day, month, weekday, such as 0 2 * * *")
    timezone: str = Field(default="UTC", description="of the clock, such as Europe/Berlin")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError("cron has five fields: minute, hour, day, month, weekday")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"unknown time zone {value!r}; write one such as Europe/Berlin")
        return value


class RetrainSettings(Settings):
    """When a night trains although there is a champion: as soon as one of these holds.

    With none of them, never; a run may still be asked to.
    """

    every_nights: int | None = Field(
        default=None, ge=1, description="nights since the champion was trained"
    )
    new_images: int | None = Field(
        default=None, ge=1, description="images more than the champion was trained on"
    )


class TimeoutSettings(Settings):
    """Seconds after which a night gives a job up; what that got done stays for the next."""

    stage_s: float | None = Field(default=None, gt=0, description="of staging; none if null")
    train_s: float | None = Field(default=None, gt=0, description="of training; none if null")
    embed_s: float | None = Field(default=None, gt=0, description="of embedding; none if null")
    maintain_s: float | None = Field(default=None, gt=0, description="of maintenance")


class NightlySettings(Settings):
    """The whole flow: stage, train where there is no champion or it is time to, embed."""

    lake: str = Field(default="./lake", description="root URI of the lake")
    stage: StageSettings
    train: TrainSettings
    embed: EmbedSettings
    ray: RaySettings = RaySettings()
    retrain: RetrainSettings = RetrainSettings()
    schedule: ScheduleSettings | None = Field(default=None, description="for latentlake serve")
    timeouts: TimeoutSettings = TimeoutSettings()

    @model_validator(mode="after")
    def _one_dataset(self) -> Self:
        named = {self.stage.dataset, self.train.dataset, self.embed.dataset}
        if len(named) > 1:
            raise ValueError(
                f"stage, train and embed name different datasets ({', '.join(sorted(named))}); a "
                "night is one dataset's"
            )
        return self


def tonight() -> str:
    """The logical night of a run that is not given one: today's date."""
    return dt.date.today().isoformat()


def valid_night(night: str) -> str:
    try:
        return dt.date.fromisoformat(night).isoformat()
    except ValueError as error:
        raise InputError(f"night {night!r} is not a date; write YYYY-MM-DD") from error


def load_nightly(path: str) -> NightlySettings:
    """path: of a local file, or a URI."""
    return build(NightlySettings, load_yaml(path))

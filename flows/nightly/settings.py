"""Settings of a night: those of its jobs, and when it comes, retrains and gives up."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import Self

from pydantic import Field, field_validator, model_validator

from jobs.cluster.settings import RaySettings
from jobs.drift.settings import DriftRule, DriftSettings
from jobs.embed.settings import EmbedSettings
from jobs.errors import InputError
from jobs.evaluate.settings import EvaluateNight, EvaluateSettings
from jobs.promote.settings import GateRule
from jobs.settings import Settings, build, load_yaml
from jobs.stage.settings import StageSettings
from jobs.train.settings import TrainSettings


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

    With none of them, never; a run's form may still request it.
    """

    every_nights: int | None = Field(
        default=None, ge=1, description="nights since the last training"
    )
    new_images: int | None = Field(
        default=None, ge=1, description="images more than the last model was trained on"
    )
    drift: bool = Field(
        default=False, description="when images have drifted that no model was trained on"
    )


HOUR = 3600.0


class TimeoutSettings(Settings):
    """Seconds after which a night gives a job up; what that got done stays for the next."""

    stage_s: float | None = Field(default=20 * HOUR, gt=0, description="of staging; none if null")
    train_s: float | None = Field(default=20 * HOUR, gt=0, description="of training")
    embed_s: float | None = Field(default=20 * HOUR, gt=0, description="of embedding")
    backfill_s: float | None = Field(default=168 * HOUR, gt=0, description="of a backfill")
    evaluate_s: float | None = Field(default=4 * HOUR, gt=0, description="of each evaluation")
    drift_s: float | None = Field(default=HOUR, gt=0, description="of the drift tests")
    report_s: float | None = Field(default=HOUR, gt=0, description="of the report")
    maintain_s: float | None = Field(default=20 * HOUR, gt=0, description="of maintenance")


class NightlySettings(Settings):
    """The whole flow: stage, train where it is time to, evaluate, embed, drift, report."""

    lake: str = Field(default="./lake", description="root URI of the lake")
    stage: StageSettings
    train: TrainSettings
    embed: EmbedSettings
    ray: RaySettings = RaySettings()
    retrain: RetrainSettings = RetrainSettings()
    evaluate: EvaluateNight | None = Field(
        default=EvaluateNight(), description="not at all if null"
    )
    gate: GateRule | None = Field(
        default=GateRule(), description="what makes a champion; being the newest if null"
    )
    drift: DriftRule | None = Field(default=DriftRule(), description="not looked for if null")
    report: bool = Field(default=True, description="write a page about the night")
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

    @model_validator(mode="after")
    def _gate_sees(self) -> Self:
        if self.gate is not None and self.evaluate is None:
            raise ValueError("gate reads evaluations: leave evaluate as it is, or say gate: null")
        if self.retrain.drift and self.drift is None:
            raise ValueError("retrain.drift needs drift: leave it as it is")
        return self

    @model_validator(mode="after")
    def _one_champion(self) -> Self:
        own, alias = self.train.model, self.train.alias
        named = own if alias == "champion" else f"{own}@{alias}"
        if self.embed.model == own and alias != "champion":
            raise ValueError(
                f"train gives the alias {alias}, and embed takes the champion: write embed.model: "
                f"{named}"
            )
        if self.retrain.drift and self.embed.model not in (own, named):
            raise ValueError(
                f"retrain.drift trains {own}, but drift is looked for in what {self.embed.model} "
                f"embeds: write embed.model: {named}, or leave retrain.drift out"
            )
        return self

    @property
    def training(self) -> TrainSettings:
        """Where no gate decides, the newest model is the champion."""
        return self.train.model_copy(update={"promote": self.gate is None})

    def evaluation(self, model: str) -> EvaluateSettings | None:
        """Of a model by the night's rule; None where none is wanted."""
        if self.evaluate is None:
            return None
        return EvaluateSettings(
            **self.evaluate.model_dump(), dataset=self.embed.dataset, model=model
        )

    @property
    def drift_test(self) -> DriftSettings | None:
        """Of what the night has embedded; None where none is wanted."""
        if self.drift is None:
            return None
        return DriftSettings(
            **self.drift.model_dump(), dataset=self.embed.dataset, model=self.embed.model
        )


def tonight() -> str:
    """Return the logical night of a run that is not given one: today's date."""
    return dt.date.today().isoformat()


def valid_night(night: str) -> str:
    """Return the night, if it is a date. Raises InputError."""
    try:
        return dt.date.fromisoformat(night).isoformat()
    except ValueError as error:
        raise InputError(f"night {night!r} is not a date; write YYYY-MM-DD") from error


def load_nightly(path: str) -> NightlySettings:
    """path: of a local file, or a URI."""
    return build(NightlySettings, load_yaml(path))

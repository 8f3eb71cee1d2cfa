"""What judging is told: how a model is evaluated, what drift is, who becomes champion."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from jobs.settings import Settings


class EvaluateRule(Settings):
    """How a model is judged on the test split."""

    label: str | None = Field(
        default=None, description="column for the linear probe; label, where there is one, if none"
    )
    anomaly: str | None = Field(
        default=None,
        description="column that tells anomalies, COLUMN or COLUMN=VALUE; is_anomaly if none",
    )
    samples: int = Field(default=64, ge=1, description="posterior samples (K) of log p(x)")
    max_images: int = Field(
        default=10_000, ge=50, description="of the test split; a sample, by id, where it has more"
    )
    train_images: int = Field(
        default=10_000, ge=50, description="of the train split: probe, PCA, nearest neighbours"
    )
    resamples: int = Field(default=1000, ge=100, description="of the bootstrap over images")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of the intervals")
    seed: int = Field(default=0, ge=0, description="of samples and resamples")


class EvaluateNight(EvaluateRule):
    """What a night is told of evaluate: the rule, and what changes no result."""

    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")


class EvaluateSettings(EvaluateNight):
    """One call of evaluate."""

    dataset: str = Field(description="dataset whose test split judges")
    model: str = Field(description="NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME")
    images_version: int | None = Field(
        default=None, ge=0, description="snapshot; the newest if none"
    )


class DriftRule(Settings):
    """When a night's images are held to come from elsewhere than the model's own."""

    alpha: float = Field(
        default=0.05, gt=0, lt=1, description="chance of any false alarm in that many nights"
    )
    nights: int = Field(default=30, ge=1, description="that share alpha, in equal parts")
    max_images: int = Field(
        default=3000, ge=50, le=5000, description="a side at most: a sample, by id, of more"
    )
    least_images: int = Field(
        default=50, ge=10, description="a side; a night with fewer is not tested"
    )
    relabellings: int = Field(default=1999, ge=99, description="of the permutation tests")
    block_images: int = Field(
        default=16, ge=1, description="neighbours in a source file that are moved together"
    )
    block_by: str | None = Field(
        default=None, description="column whose equal values are moved together, such as camera"
    )
    seed: int = Field(default=0, ge=0, description="of samples and relabellings")

    @property
    def level(self) -> float:
        """What one night may spend of alpha."""
        return self.alpha / self.nights

    @model_validator(mode="after")
    def _can_alarm(self) -> DriftRule:
        if 1 / (1 + self.relabellings) > self.level:
            raise ValueError(
                f"{self.relabellings} relabellings give no p-value below "
                f"{1 / (1 + self.relabellings):.2g}, and a night may spend {self.level:.2g}: no "
                f"drift could be found; ask for at least {round(1 / self.level)} relabellings"
            )
        return self


class DriftSettings(DriftRule):
    """One call of drift."""

    dataset: str = Field(description="dataset whose arrivals are tested")
    model: str = Field(description="NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME")


class GateRule(Settings):
    """What a challenger has to show before it becomes champion; on the same images, in pairs."""

    gain_nats: float = Field(
        default=0.0,
        description="the lower end of the paired gain in the bound has to be above this",
    )
    probe_loss: float = Field(
        default=0.05, ge=0, description="most that the linear probe's accuracy may lose"
    )
    auroc_loss: float = Field(
        default=0.05, ge=0, description="most that the decision score's AUROC may lose"
    )
    active_share: float = Field(
        default=0.5, ge=0, description="least active units, in shares of the champion's"
    )
    calibration_p: float = Field(
        default=0.001, ge=0, lt=1, description="least p-value of the calibration on the test split"
    )
    least_images: int = Field(
        default=50, ge=10, description="test images of both; of fewer nothing is believed"
    )
    least_anomalies: int = Field(
        default=10, ge=1, description="anomalous ones among them, and normal ones, for AUROC"
    )


class PromoteSettings(Settings):
    """A bundle gets an alias."""

    model: str = Field(description="NAME@VERSION, or NAME@ALIAS for what that names now")
    alias: str = Field(default="champion", description="alias that is moved")
    dataset: str | None = Field(
        default=None, description="whose evaluations the rule reads; the bundle's own if none"
    )
    rule: GateRule | None = Field(
        default=GateRule(), description="what it has to show; nothing if null"
    )
    back: bool = Field(default=False, description="to the version before: a rollback")
    back_from: str | None = Field(
        default=None, description="of a rollback: only if the alias names this version"
    )
    reason: str | None = Field(default=None, description="why, in the history of the alias")
    by: str | None = Field(default=None, description="who; the user of the process if none")

    @model_validator(mode="before")
    @classmethod
    def _no_rule(cls, value: Any) -> Any:
        # A rollback is for the worst night: it asks for nothing.
        return {**value, "rule": None} if isinstance(value, dict) and value.get("back") else value

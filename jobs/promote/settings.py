"""Settings of a promotion."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from jobs.settings import Settings


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
        default=50, ge=10, description="test images of both; of fewer nothing is concluded"
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

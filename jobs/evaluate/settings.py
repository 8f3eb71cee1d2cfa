"""Settings of an evaluation."""

from __future__ import annotations

from pydantic import Field

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
    """A night's settings of evaluate: the rule, and what changes no result."""

    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")


class EvaluateSettings(EvaluateNight):
    """One call of evaluate."""

    dataset: str = Field(description="dataset whose test split judges")
    model: str = Field(description="NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME")
    images_version: int | None = Field(
        default=None, ge=0, description="snapshot; the newest if none"
    )

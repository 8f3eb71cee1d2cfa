"""Settings of embedding."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import Field, model_validator

from jobs.settings import Settings

Reconstructions = Literal["none", "anomalies", "sample", "all"]


class EmbedSettings(Settings):
    """From images and a bundle to the embeddings table."""

    dataset: str = Field(description="dataset to embed")
    model: str = Field(description="NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME")
    reconstructions: Reconstructions = Field(
        default="none",
        description="whose reconstructions to write as PNG: of none, of anomalies (p-value at most "
        "alpha), of a sample (one in a hundred), of all",
    )
    scores: Literal["all", "none"] = Field(
        default="all", description="none: only encode; the images have no scores and p-values then"
    )
    alpha: float = Field(
        default=0.05, gt=0, lt=1, description="false-discovery rate among the flagged anomalies"
    )
    commit_every: int | None = Field(
        default=None, ge=1, description="units a commit, for very long jobs; all of them if none"
    )
    backfill: bool = Field(
        default=True,
        description="also history: images that another version of the model has embedded already",
    )
    since: dt.date | None = Field(
        default=None, description="only images staged in that night and after it"
    )
    until: dt.date | None = Field(
        default=None, description="only images staged in that night and before it"
    )
    redo: bool = Field(
        default=False, description="embed all images again; the version's old rows are replaced"
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="images a forward pass; the bundle's scoring batch if none"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="of each worker; auto: a GPU if there is one and the model was calibrated so",
    )
    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="begin with so many, up to workers as they find room; all of them if none",
    )

    @model_validator(mode="after")
    def _check(self) -> EmbedSettings:
        if self.scores == "none" and self.reconstructions != "none":
            raise ValueError("reconstructions come with scores: ask for both, or for neither")
        if self.redo and self.commit_every is not None:
            raise ValueError("redo replaces all rows in one commit: it goes without commit_every")
        if self.redo and not (self.backfill and self.since is None and self.until is None):
            raise ValueError("redo replaces all rows: it goes without since, until and no backfill")
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError(f"since {self.since} is after until {self.until}")
        if self.min_workers is not None and (self.workers or 0) < self.min_workers:
            raise ValueError("min_workers goes with workers, the most there may be, and is no more")
        return self


class DropSettings(Settings):
    """A model version's rows, out of the tables."""

    model: str = Field(description="NAME@VERSION or NAME@ALIAS")
    dataset: str | None = Field(default=None, description="only images of that one; all if none")


class MapSettings(Settings):
    """A model's embeddings, as points on a plane."""

    model: str = Field(description="NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME")
    method: Literal["pca", "umap"] = Field(default="pca", description="what lays out the plane")

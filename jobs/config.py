"""What a run is told: strict, frozen settings, with one-line descriptions for every form.

`fingerprint` covers what changes outputs; worker counts, addresses and limits stay out of it.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.settings import Settings
from vae_core.config import (
    CodeKind,
    FitKind,
    LikelihoodConfig,
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    PosteriorKind,
)
from vae_core.score_names import DECISIVE, SCORES, scores_of

Positive = Annotated[int, Field(ge=1)]
Scoring = Annotated[int, Field(ge=1, le=65_536)]
Byte = Annotated[int, Field(ge=0, le=255)]
Fit = Literal["crop", "pad", "stretch"]
FormatName = Literal["parquet", "files", "webdataset"]


class RaySettings(Settings):
    """Where the work runs."""

    address: str | None = Field(
        default=None,
        description="http://HEAD:8265 to submit jobs to, HOST:6379 on a node; embedded if none",
    )
    wheel: str | None = Field(
        default=None, description="wheel of latentlake that jobs bring; the cluster's own if none"
    )
    cpus: int | None = Field(
        default=None, ge=1, description="CPUs of the embedded cluster; all if none"
    )
    autoscaling: bool = Field(
        default=False, description="the cluster adds nodes when asked for more"
    )
    resource_timeout_s: float = Field(
        default=600.0, ge=0, description="how long to wait for an autoscaling cluster, in seconds"
    )

    @model_validator(mode="before")
    @classmethod
    def _local(cls, value: Any) -> Any:
        return {} if value == "local" else value

    @field_validator("address")
    @classmethod
    def _without_a_user(cls, address: str | None) -> str | None:
        if address is not None and "@" in address:
            raise ValueError(
                "the address has a user or a password in it, and an address is shown and kept; "
                "write it without, and give a token by the environment (RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN)"
            )
        return address

    @model_validator(mode="after")
    def _brought(self) -> RaySettings:
        if self.wheel is not None and not self.takes_jobs:
            raise ValueError("a wheel goes with jobs that are submitted, to http://HEAD:8265")
        return self

    @property
    def takes_jobs(self) -> bool:
        """Whether jobs are submitted, to run on a node of the cluster."""
        return (self.address or "").startswith(("http://", "https://"))


class StageSettings(Settings):
    """From a source to the images table."""

    source: str = Field(
        description="URI of Parquet, image files or WebDataset tars: a file, a folder or a pattern"
    )
    dataset: str = Field(description="name of the table of staged images")
    format: FormatName | None = Field(
        default=None, description="parquet, files or webdataset; found out if none"
    )
    image_column: str | None = Field(
        default=None, description="column with the images, a.b where nested; found out if none"
    )
    array_shape: tuple[Positive, ...] | None = Field(
        default=None, description="shape of flat pixel columns: H, W or H, W, C or C, H, W"
    )
    height: Positive = Field(default=64, description="height of the staged images, in pixels")
    width: Positive = Field(default=64, description="width of the staged images, in pixels")
    channels: int = Field(default=3, description="1 for grey, 3 for colour")
    fit: Fit = Field(
        default="crop", description="crop the middle, pad with the background, or stretch"
    )
    background: tuple[Byte, Byte, Byte] = Field(
        default=(255, 255, 255), description="RGB behind transparency and in padding"
    )
    max_pixels: Positive = Field(
        default=100_000_000, description="refuse images with more pixels, from their header"
    )
    exact: bool = Field(
        default=False,
        description="decode JPEG at full size always: slower, nearer by a grey value or two",
    )
    rows_per_unit: Positive | None = Field(
        default=None, description="source rows a unit; what fills a shard of 128 MiB if none"
    )
    max_refused: float = Field(
        default=0.05, ge=0, le=1, description="fail above this share of refused rows or files"
    )
    max_removed: float = Field(
        default=0.1, ge=0, le=1, description="fail above this share of images that left the source"
    )
    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, value: int) -> int:
        if value not in (1, 3):
            raise ValueError("channels must be 1 or 3")
        return value

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    @field_validator("array_shape")
    @classmethod
    def _two_or_three(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(value) not in (2, 3):
            raise ValueError("array_shape must be H, W or H, W, C or C, H, W")
        return value

    def preprocessing_of(self) -> dict[str, Any]:
        """What staged pixels depend on beside the bytes: one dataset, one look."""
        return {
            "image_shape": list(self.image_shape),
            "fit": self.fit,
            "background": list(self.background),
            "exact": self.exact,
        }

    def fingerprint_of(self) -> dict[str, Any]:
        names = ("format", "image_column", "array_shape", "max_pixels", "rows_per_unit")
        return {**self.preprocessing_of(), **self.model_dump(mode="json", include=set(names))}


class TrainRun(Settings):
    """How a training runs: of no account for what is trained, and no part of its fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="a GPU where the worker has one"
    )
    compile: bool | None = Field(
        default=None, description="torch.compile; on a GPU if none is said"
    )
    channels_last: bool | None = Field(
        default=None, description="memory format of convolutions; on a GPU if none is said"
    )
    data: Literal["auto", "resident", "streamed"] = Field(
        default="auto", description="the train split in memory, or read as it is needed"
    )
    memory_gib: float = Field(
        default=4.0, gt=0, description="a worker's budget for resident images, RAM or GPU"
    )
    threads: Positive = Field(default=1, description="CPUs, and torch threads, of a worker")
    micro_batches: Positive = Field(
        default=1, description="parts of a worker's share whose gradients are added up"
    )
    min_workers: int | None = Field(
        default=None, ge=1, description="go on with as few workers as this; all of them if none"
    )
    checkpoint_s: float = Field(default=120.0, ge=0, description="seconds between checkpoints")
    keep_checkpoints: Positive = Field(default=2, description="newest ones that are kept")
    log_s: float = Field(default=10.0, ge=0, description="seconds between telemetry events")
    max_bad_steps: int = Field(
        default=3, ge=0, description="steps with a non-finite loss that are skipped before failing"
    )


class TrainSettings(Settings):
    """From an images snapshot to a bundle."""

    dataset: str = Field(description="dataset to train on")
    model: str = Field(description="name of the model")
    latent_dim: Positive = Field(default=32, description="latent dimensions")
    network: NetworkConfig = Field(default=NetworkConfig(), description="encoder and decoder")
    likelihood: LikelihoodConfig = Field(default=LikelihoodConfig(), description="of pixels")
    posterior: PosteriorKind = Field(
        default="gaussian", description="gaussian: a VAE; deterministic: an autoencoder"
    )
    code: CodeKind = Field(default="linear", description="of a deterministic posterior")
    fit: FitKind = Field(
        default="gradient", description="by gradient, or closed_form: PCA of a linear network"
    )
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="what is minimised")
    epochs: Positive = Field(default=20, description="passes over the train split")
    batch_size: Positive = Field(default=128, description="global batch, whatever the worker count")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak, after a linear warm-up")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="of the learning rate; 100, or a tenth of all, if none"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW, decoupled")
    clip_norm: float | None = Field(
        default=None, gt=0, description="gradient norm bound; none if null"
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="publish averaged weights: decay a step"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without a better validation"
    )
    flip: bool = Field(default=False, description="mirror half of the images in training")
    crop: int = Field(default=0, ge=0, description="shift images by up to so many pixels")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of training; bfloat16 on a GPU that has it"
    )
    streams: Positive = Field(
        default=8, description="of the sample order; the most workers that can share it"
    )
    shuffle_rows: Positive = Field(
        default=16384, description="images that are shuffled at once, at least"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of weights, order and noise")
    score_batch: Scoring = Field(default=256, description="images a batch when scoring")
    score_precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the networks when scoring; bfloat16 on a GPU that has it"
    )
    score_samples: Scoring = Field(default=4, description="posterior samples a score (K)")
    decision_score: str | None = Field(
        default=None,
        description="the score that p-values come from; neg_elbo if none, or recon_nll without KL",
    )
    images_version: int | None = Field(
        default=None, ge=0, description="snapshot; the newest if none"
    )
    workers: int = Field(default=1, ge=1, description="data-parallel workers")
    run: TrainRun = Field(default=TrainRun(), description="how it runs")
    alias: str = Field(default="champion", description="alias to give the bundle")
    promote: bool = Field(
        default=False, description="move the alias although another bundle has it"
    )

    @field_validator("decision_score")
    @classmethod
    def _known_score(cls, value: str | None) -> str | None:
        if value is not None and value not in SCORES:
            raise ValueError(f"unknown score {value!r}; known: {', '.join(SCORES)}")
        return value

    @model_validator(mode="after")
    def _objective_fits(self) -> TrainSettings:
        self.model_config_of((1, 1, 1)).check_objective(self.objective)
        self._check_run()
        known = scores_of(self.posterior, self.likelihood.kind)
        if self.decision_score is not None and self.decision_score not in known:
            raise ValueError(
                f"decision_score {self.decision_score!r} does not judge images of a "
                f"{self.posterior} posterior with a {self.likelihood.kind} likelihood; choose "
                f"from {', '.join(known)}"
            )
        return self

    def _check_run(self) -> None:
        if self.workers > self.streams:
            raise ValueError(
                f"{self.workers} workers cannot share {self.streams} streams of images; set "
                "streams to a multiple of the workers"
            )
        if self.patience is not None and self.fit != "gradient":
            raise ValueError("patience has no use in fit: closed_form, which is one pass")
        if (self.run.min_workers or 1) > self.workers:
            raise ValueError("run.min_workers is more than workers")
        whole = self.objective.of_whole_batch or self.likelihood.kind == "optimal_gaussian"
        if self.run.micro_batches > 1 and whole:
            raise ValueError(
                "run.micro_batches: this objective or likelihood takes a statistic of the whole "
                "batch (free bits, sparsity, total correlation, optimal sigma); use more workers"
            )

    @property
    def judge(self) -> str:
        """The decision score: the one asked for, or the family's own."""
        known = scores_of(self.posterior, self.likelihood.kind)
        return self.decision_score or next(name for name in DECISIVE if name in known)

    def model_config_of(self, image_shape: tuple[int, int, int]) -> ModelConfig:
        """The model for images of a shape (H, W, C)."""
        return ModelConfig(
            image_shape=image_shape,
            latent_dim=self.latent_dim,
            network=self.network,
            likelihood=self.likelihood,
            posterior=self.posterior,
            code=self.code,
            fit=self.fit,
        )

    def fingerprint_of(self) -> dict[str, Any]:
        outside = {"workers", "run", "alias", "promote", "images_version", "dataset", "model"}
        return self.model_dump(mode="json", exclude=outside)


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


class MaintainSettings(Settings):
    """Compaction of small shards, and removal of files that nothing needs."""

    dataset: str | None = Field(default=None, description="only this dataset; all if none")
    model: str | None = Field(default=None, description="only this model; all if none")
    compact: bool = Field(default=True, description="merge small shards")
    vacuum: bool = Field(default=True, description="remove files that no kept snapshot has")
    keep_days: float = Field(
        default=7.0, ge=0, description="keep snapshots that were the newest in the last days"
    )
    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")

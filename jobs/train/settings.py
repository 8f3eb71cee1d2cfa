"""Settings of a training: strict, frozen settings, with one-line descriptions for every form.

`fingerprint` covers what changes outputs; worker counts, addresses and limits stay out of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.settings import Positive, Settings
from vae_core.config import (
    CodeKind,
    FitKind,
    LikelihoodConfig,
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    PosteriorKind,
)
from vae_core.families.base import decision_score_of, scores_of
from vae_core.families.registry import family_of
from vae_core.scores.names import SCORES

Scoring = Annotated[int, Field(ge=1, le=65_536)]


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
        known = self._scores
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
        """The decision score: the one requested, or the family's own."""
        config = self.model_config_of((1, 1, 1))
        return self.decision_score or decision_score_of(family_of(config), config)

    @property
    def _scores(self) -> list[str]:
        config = self.model_config_of((1, 1, 1))
        return scores_of(family_of(config), config)

    def model_config_of(self, image_shape: tuple[int, int, int]) -> ModelConfig:
        """Return the model for images of a shape (H, W, C)."""
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
        """Return the settings that fix what is trained."""
        outside = {"workers", "run", "alias", "promote", "images_version", "dataset", "model"}
        return self.model_dump(mode="json", exclude=outside)

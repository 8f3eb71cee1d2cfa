"""Validation of a training: means over the whole split, over all ranks, no image padded in."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import torch

from jobs.datasets.splits import KeptSplit, Split
from jobs.train.rank import Rank
from jobs.train.settings import TrainSettings
from vae_core.model import Model
from vae_core.scores.per_image import ScoredBatch, Scorer
from vae_core.training.ema import WeightAverage

ACTIVE = 0.01  # variance of a latent's mean over images: Burda et al. 2016, section 5.2


@dataclasses.dataclass(frozen=True)
class Validated:
    """entry: of the history, in nats; null KL where a family has none. latents: what each does."""

    entry: dict[str, Any]
    latents: dict[str, Any]


def validate(
    model: Model,
    split: Split | KeptSplit,
    settings: TrainSettings,
    rank: Rank,
    average: WeightAverage | None = None,
) -> Validated:
    """Every rank calls it, and has the same answer.

    average: weights to judge, if not the model's own.
    """
    dim = settings.latent_dim
    # A mean over a split is no score that is compared to the last bit: no padding is needed.
    scorer = Scorer(
        model=model,
        batch_size=max(1, min(len(split), settings.score_batch)),
        samples=settings.score_samples,
        seed=settings.seed,
    )
    sums = np.zeros(3 + 3 * dim)  # images, nats, KL; by latent: mean, its square, KL
    with average.in_place() if average is not None else contextlib.nullcontext():
        for images in split.batches(settings.score_batch, rank.index, rank.world_size):
            sums += _sums(scorer.score(images.pixels_NHWC, images.image_ids))
    sums = rank.sum(torch.from_numpy(sums)).numpy()
    count, nats, kl = sums[:3]
    mean_D, square_D, kl_D = sums[3:].reshape(3, dim) / count
    has_kl = model.has_prior
    latents: dict[str, Any] = {"active_units": int(np.sum(square_D - mean_D**2 > ACTIVE))}
    if has_kl:
        latents["kl_nats_D"] = [round(float(value), 6) for value in kl_D]
    return Validated(
        {"validation_nats": nats / count, "validation_kl_nats": kl / count if has_kl else None},
        latents,
    )


def _sums(scored: ScoredBatch) -> np.ndarray:
    mean_ND, log_var_ND = scored.mean_ND.astype(np.float64), scored.log_var_ND
    kl = scored.scores["kl"]
    kl_ND = np.zeros_like(mean_ND)
    if kl is not None and log_var_ND is not None:
        wide = log_var_ND.astype(np.float64)
        kl_ND = 0.5 * (mean_ND**2 + np.exp(wide) - 1.0 - wide)
    by_latent = (mean_ND.sum(0), (mean_ND**2).sum(0), kl_ND.sum(0))
    whole = [len(mean_ND), scored.nats_N.sum(), 0.0 if kl is None else kl.sum()]
    return np.concatenate([whole, *by_latent])

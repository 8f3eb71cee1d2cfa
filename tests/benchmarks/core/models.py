"""Training a model on resident images, for benchmarks: the core alone, no jobs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np
import torch

from tests.benchmarks.core.data import Split
from vae_core.autoencoder import Autoencoder
from vae_core.config import ModelConfig, ObjectiveConfig
from vae_core.model import to_unit_range
from vae_core.moments import LatentMoments
from vae_core.noise import ImageNoise, StepNoise, image_keys
from vae_core.objectives.objectives import Objective
from vae_core.scores.per_image import ScoredBatch, Scorer
from vae_core.training.final_pass import FinalSums
from vae_core.training.step import learning_rate, train_step


def fit(
    config: ModelConfig,
    images: Split,
    *,
    epochs: int,
    batch: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
    objective: ObjectiveConfig | None = None,
    device: str = "cpu",
    each_epoch: Callable[[int, float, float], None] | None = None,
) -> tuple[Autoencoder, LatentMoments]:
    """A trained model and the moments of its latents. each_epoch(epoch, nats, seconds)."""
    torch.manual_seed(seed)
    model = Autoencoder(config).to(device)
    module = Objective(model, objective or ObjectiveConfig(), dataset_size=len(images))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=rate, fused=True)
    batches = -(-len(images) // batch)
    step, seconds = 0, 0.0
    for epoch in range(epochs):
        started, nats = time.monotonic(), 0.0
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(images))
        for rows in np.array_split(order, batches):
            now = learning_rate(step, total_steps=batches * epochs, base=rate, warmup_steps=100)
            for group in optimizer.param_groups:
                group["lr"] = now
            x = to_unit_range(torch.from_numpy(images.pixels_NHWC[rows]).to(device))
            noise = StepNoise(seed=seed, step=step, batch=len(rows))
            done = train_step(module, optimizer, x, noise, step=step)
            nats += done.recon_nll + done.kl
            step += 1
        seconds += time.monotonic() - started
        if each_epoch is not None:
            each_epoch(epoch + 1, nats / len(images), seconds)
    return model.eval(), finish(model, images, seed)


def finish(model: Autoencoder, images: Split, seed: int) -> LatentMoments:
    sums = FinalSums.zeros(model.config.latent_dim)
    device = next(model.parameters()).device
    for start in range(0, len(images), 500):
        pixels = torch.from_numpy(images.pixels_NHWC[start : start + 500]).to(device)
        keys = torch.from_numpy(image_keys(ids(len(pixels), start))).to(device)
        noise = ImageNoise(seed=seed, keys_N2=keys)
        sums.add(model, model.observe(to_unit_range(pixels), noise), noise)
    return sums.finish(model)


def ids(count: int, start: int = 0) -> list[str]:
    """Image ids by position."""
    return [hashlib.sha256(str(start + i).encode()).hexdigest() for i in range(count)]


def score(
    model: Autoencoder, moments: LatentMoments, heldout_neg_elbo: float, images: Split
) -> ScoredBatch:
    scorer = Scorer(
        model=model,
        batch_size=250,
        samples=4,
        seed=0,
        moments=moments,
        heldout_neg_elbo=heldout_neg_elbo,
    )
    return scorer.score(images.pixels_NHWC, ids(len(images)))

"""Single passes over the train split without gradients: the closed form, the latent moments."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jobs.datasets.splits import Split
from jobs.errors import JobError
from jobs.train.rank import Rank
from jobs.train.settings import TrainSettings
from vae_core.families.linear import solve, sums_for
from vae_core.model import Model, to_unit_range
from vae_core.moments import LatentMoments
from vae_core.noise import ImageNoise, image_keys
from vae_core.scores.per_image import Scorer
from vae_core.training.final_pass import FinalSums


def observed(
    model: Model, split: Split, settings: TrainSettings, rank: Rank
) -> Iterator[tuple[Tensor, ImageNoise]]:
    """Yield this rank's images as the likelihood sees them, with their noise, in batches."""
    device = next(model.parameters()).device
    for images in split.batches(settings.score_batch, rank.index, rank.world_size):
        keys = torch.from_numpy(image_keys(images.image_ids)).to(device)
        noise = ImageNoise(seed=settings.seed, keys_N2=keys)
        x = to_unit_range(torch.from_numpy(images.pixels_NHWC).to(device))
        yield model.observe(x, noise), noise


@torch.no_grad()
def closed_form(model: Model, train: Split, settings: TrainSettings, rank: Rank) -> list[float]:
    """Solves the model from sums over the split; its loss, recon_nll, kl and images, summed."""
    try:
        sums = sums_for(model)
        for target, _ in observed(model, train, settings, rank):
            sums.add(target.flatten(1).cpu())
        for tensor in sums.tensors():
            rank.sum(tensor)
        solve(model, sums)
    except ValueError as error:
        raise JobError(f"training stopped: {error}") from error
    scorer = Scorer(
        model=model,
        batch_size=min(len(train), settings.score_batch),
        samples=settings.score_samples,
        seed=settings.seed,
    )
    found = torch.zeros(4, dtype=torch.float64)
    for images in train.batches(settings.score_batch, rank.index, rank.world_size):
        scored = scorer.score(images.pixels_NHWC, images.image_ids)
        nats, recon = float(scored.nats_N.sum()), scored.scores["recon_nll"]
        assert recon is not None
        lost = float(recon.sum())
        found += torch.tensor([nats, lost, nats - lost, len(images)], dtype=torch.float64)
    return rank.sum(found).tolist()


def final_moments(model: Model, train: Split, settings: TrainSettings, rank: Rank) -> LatentMoments:
    """Freezes what the likelihood left moving; moments of the aggregate posterior."""
    sums = FinalSums.zeros(settings.latent_dim)
    for target, noise in observed(model, train, settings, rank):
        sums.add(model, target, noise)
    for tensor in sums.tensors():
        rank.sum(tensor)
    return sums.finish(model)

"""Whether a model has learned its training images by heart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from vae_core.stats.metrics import auroc


def nearest_distance(x_NP: Tensor, reference_MP: Tensor, chunk: int = 1024) -> Tensor:
    """Euclidean distance to the nearest reference row, (N,), a few rows at a time."""
    parts = [torch.cdist(rows, reference_MP).amin(1) for rows in x_NP.split(chunk)]
    return torch.cat(parts)


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """copying: P(a sample lies nearer to the training images than a held-out image does); 0.5 is
    fair, 1 a copier, 0 a model whose samples are far from any image (Meehan et al. 2020, "A
    non-parametric test to detect data-copying in generative models", section 3).

    membership: P(a held-out image's −ELBO is above a training image's), the membership probe of
    Hilprecht et al. 2019: 0.5 says that training images are not distinguished.
    """

    copying: float
    membership: float


def memorisation(
    samples_SP: Tensor,
    train_NP: Tensor,
    heldout_MP: Tensor,
    train_nats_N: Tensor,
    heldout_nats_M: Tensor,
) -> Memorisation:
    """Images as vectors; nats: −ELBO (or what stands for it) of training and held-out images."""
    drawn, fair = (nearest_distance(x, train_NP) for x in (samples_SP, heldout_MP))
    distances = torch.cat([fair, drawn]).cpu().numpy()
    is_fair = torch.cat([torch.ones(len(fair)), torch.zeros(len(drawn))]).bool().numpy()
    nats = torch.cat([heldout_nats_M, train_nats_N]).double().cpu().numpy()
    is_heldout = torch.cat([torch.ones(len(heldout_nats_M)), torch.zeros(len(train_nats_N))])
    return Memorisation(auroc(distances, is_fair), auroc(nats, is_heldout.bool().numpy()))


def _nearest(x_NP: Tensor, reference_MP: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Distances to the nearest reference row, and which one it is."""
    found = [torch.cdist(rows, reference_MP).min(1) for rows in x_NP.split(chunk)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


@dataclasses.dataclass(frozen=True)
class Copying:
    """z: below -3, samples lie nearer to training images than to others of the same kind.

    distances_S: of each sample to the nearest training image.
    """

    z: float
    distances_S: np.ndarray


def copying(samples_SP: Tensor, train_NP: Tensor, heldout_MP: Tensor) -> Copying:
    """Of the images that are nearest to some sample: are too few of them held-out ones?

    Meehan et al. 2020 hold a sample's distance to training images against a held-out image's. A
    decoder's means are smooth, which brings them nearer to any image, so that this finds copies
    where there are none. Here each sample's nearest among all N + M images is looked up. Where the
    model does not know which of them it was trained on, labels are exchangeable, and of U distinct
    ones the number that are held out is hypergeometric. Distinct, because one plain image may be
    the nearest to hundreds. z is NaN where nothing can vary.
    """
    (to_train, train_S), (to_held, held_S) = (
        _nearest(samples_SP, reference) for reference in (train_NP, heldout_MP)
    )
    # Of a picture that is in both, it cannot be known.
    known = ~torch.isclose(to_train, to_held, rtol=1e-4, atol=1e-6)
    is_held = to_held < to_train
    of_train = len(train_S[known & ~is_held].unique())
    of_held = len(held_S[known & is_held].unique())
    n, m, u = len(train_NP), len(heldout_MP), of_train + of_held
    share = m / (n + m)
    variance = u * share * (1.0 - share) * (n + m - u) / (n + m - 1)
    z = (of_held - u * share) / math.sqrt(variance) if variance > 0 else math.nan
    return Copying(z, to_train.double().numpy())

"""Whether a model has learned its training images by heart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from vae_core.metrics import auroc


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
    Hilprecht et al. 2019: 0.5 says that training images are not told apart.
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


def copying_z(samples_S: np.ndarray, heldout_M: np.ndarray) -> float:
    """Meehan et al. 2020, section 3.1: z of the Mann-Whitney U of distances to the nearest training
    image. Near 0: a sample lies as near as a held-out image. Below -3: nearer, training images are
    copied; above 3: further off, the samples are no good yet. Ties count half, and NaN where all
    distances are equal.
    """
    s, m = len(samples_S), len(heldout_M)
    distances = np.concatenate([samples_S, heldout_M])
    above = auroc(distances, np.arange(s + m) < s)
    _, counts = np.unique(distances, return_counts=True)
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / ((s + m) * (s + m - 1))
    variance = s * m * (s + m + 1 - ties) / 12.0
    return (above - 0.5) * s * m / math.sqrt(variance) if variance > 0 else math.nan

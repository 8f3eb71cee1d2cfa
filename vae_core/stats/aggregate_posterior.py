"""The aggregate posterior, of a set of images, against the prior N(0, I)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vae_core.stats.bootstrap import Statistic

# A latent dimension is active where its posterior mean varies by more (Burda et al. 2016, sec. 5).
ACTIVE_VARIANCE = 0.01


def kl_dimensions(mean_ND: np.ndarray, log_var_ND: np.ndarray) -> np.ndarray:
    """KL of each image's N(mean, diag exp(log_var)) to N(0, I), by dimension, (N, D) in nats."""
    mean, log_var = mean_ND.astype(np.float64), log_var_ND.astype(np.float64)
    return 0.5 * (np.square(mean) + np.exp(log_var) - 1.0 - log_var)


def active_units(mean_ND: np.ndarray) -> Statistic:
    """How many dimensions' posterior means have a variance above ACTIVE_VARIANCE."""
    # Around a point near the mean, for a small variance drowns in a large one's square.
    centred_ND = mean_ND.astype(np.float64) - mean_ND.mean(axis=0, dtype=np.float64)
    squares_ND = np.square(centred_ND)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        total_R1 = counts_RN.sum(axis=1, keepdims=True)
        mean_RD = counts_RN @ centred_ND / total_R1
        variance_RD = counts_RN @ squares_ND / total_R1 - np.square(mean_RD)
        return (variance_RD > ACTIVE_VARIANCE).sum(axis=1).astype(np.float64)

    return statistic


class AggregateFit(NamedTuple):
    """kl: in nats. terms_N: per image; their mean is kl, and their bootstrap that of kl to first
    order. bias: by about how much kl is too large, being of N images only."""

    kl: float
    terms_N: np.ndarray
    bias: float


def aggregate_kl(mean_ND: np.ndarray, log_var_ND: np.ndarray) -> AggregateFit:
    """KL(N(m, Cov[μ] + E[diag σ²]) ‖ N(0, I)): the Gaussian fitted to the aggregate posterior.

    ½ (tr Σ + mᵀm - D - ln |Σ|). A resample of N images repeats some, and ln |Σ| of those is biased
    once more, by as much as this one is already; its influence function (Hampel 1974, "The
    influence curve and its role in robust estimation") is an image's share without that.
    """
    mean, var = mean_ND.astype(np.float64), np.exp(log_var_ND.astype(np.float64))
    count, dim = mean.shape
    m_D = mean.mean(axis=0)
    centred_ND = mean - m_D
    covariance_DD = centred_ND.T @ centred_ND / count
    sigma_DD = covariance_DD + np.diag(var.mean(axis=0))
    _, log_det = np.linalg.slogdet(sigma_DD)
    kl = 0.5 * (np.trace(sigma_DD) + m_D @ m_D - dim - log_det)
    precision_DD = np.linalg.inv(sigma_DD)
    slope_DD = np.eye(dim) - precision_DD
    spread_N = ((centred_ND @ slope_DD) * centred_ND).sum(axis=1) + var @ slope_DD.diagonal()
    shift_N = centred_ND @ m_D
    terms_N = kl + 0.5 * (spread_N - (slope_DD * sigma_DD).sum()) + shift_N
    share_DD = precision_DD @ covariance_DD
    # Second order, of Gaussian means; where they are all of Σ, D (D + 3) / 4N.
    second = np.trace(share_DD) ** 2 + np.trace(share_DD @ share_DD) + 2.0 * np.trace(share_DD)
    bias = float(second) / (4.0 * count)
    return AggregateFit(float(kl), terms_N, bias)

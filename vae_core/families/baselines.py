"""What a model without latents reaches, in the same nats: the line that a VAE must pass."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vae_core.families.linear import PixelSums
from vae_core.likelihoods.discrete import LEVELS
from vae_core.normal import LOG_2PI


@dataclasses.dataclass
class ValueCounts:
    """How often each pixel value position had each of its 256 values, (P, 256) float64.

    Adds up over batches and workers; all that a model of independent pixels needs.
    """

    counts_PV: Tensor

    @classmethod
    def zeros(cls, pixels: int) -> ValueCounts:
        """Make counts of nothing yet."""
        return cls(torch.zeros(pixels, LEVELS, dtype=torch.float64))

    def add(self, pixels_NP: Tensor) -> None:
        """uint8 pixels as vectors."""
        index = pixels_NP.long().cpu() + LEVELS * torch.arange(len(self.counts_PV))
        ones = torch.ones(index.numel(), dtype=torch.float64)
        self.counts_PV.view(-1).index_add_(0, index.flatten(), ones)

    def tensors(self) -> list[Tensor]:
        """For an all-reduce in place."""
        return [self.counts_PV]


@dataclasses.dataclass(frozen=True)
class IndependentPixels:
    """A Gaussian for each pixel value on its own, in [0, 1]: mean (P,) and variance (P,)."""

    mean_P: Tensor
    variance_P: Tensor

    @classmethod
    def fit(cls, counts: ValueCounts, floor: float = 1e-6) -> IndependentPixels:
        """Fit the maximum of the likelihood, variances floored (a border is always black)."""
        share_PV = counts.counts_PV / counts.counts_PV.sum(1, keepdim=True)
        values_V = torch.arange(LEVELS, dtype=torch.float64) / (LEVELS - 1)
        mean_P = share_PV @ values_V
        variance_P = (share_PV * (values_V - mean_P.unsqueeze(1)).square()).sum(1)
        return cls(mean_P, variance_P.clamp_min(floor))

    def log_prob(self, x_NP: Tensor) -> Tensor:
        """In nats, (N,); x in [0, 1]."""
        squared = (x_NP.to(self.mean_P) - self.mean_P).square() / self.variance_P
        return -0.5 * (squared + self.variance_P.log() + LOG_2PI).sum(1)


@dataclasses.dataclass(frozen=True)
class IndependentValues:
    """For each pixel value on its own, the probability of each of 256 values, (P, 256).

    Against likelihoods over the 256 values; summed over the values above and below a threshold,
    against binarised pixels.
    """

    probability_PV: Tensor

    @classmethod
    def fit(cls, counts: ValueCounts) -> IndependentValues:
        """Half a count is added to each value (Krichevsky & Trofimov 1981): none is impossible."""
        smoothed = counts.counts_PV + 0.5
        return cls(smoothed / smoothed.sum(1, keepdim=True))

    def log_prob(self, pixels_NP: Tensor) -> Tensor:
        """Of uint8 pixels, in nats, (N,)."""
        log_PV = self.probability_PV.log()
        return log_PV.gather(1, pixels_NP.long().cpu().T).sum(0)

    def log_prob_bits(self, pixels_NP: Tensor, threshold: float = 0.5) -> Tensor:
        """Of uint8 pixels binarised at a threshold in [0, 1], in nats, (N,)."""
        above_V = torch.arange(LEVELS) / (LEVELS - 1) > threshold
        on_P = self.probability_PV[:, above_V].sum(1)
        bits = above_V[pixels_NP.long().cpu()].double()
        return (bits * on_P.log() + (1.0 - bits) * torch.log1p(-on_P)).sum(1)


@dataclasses.dataclass(frozen=True)
class FullGaussian:
    """One Gaussian over all pixels: mean (P,) and Cholesky factor (P, P) of its covariance."""

    mean_P: Tensor
    factor_PP: Tensor

    @classmethod
    def fit(cls, sums: PixelSums, ridge: float = 1e-6) -> FullGaussian:
        """Fit the maximum of the likelihood, `ridge` (squared intensity) added to every
        variance."""
        covariance = sums.covariance()
        covariance = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
        return cls(sums.mean(), torch.linalg.cholesky(covariance))

    def log_prob(self, x_NP: Tensor) -> Tensor:
        """In nats, (N,)."""
        centred = (x_NP.to(self.mean_P) - self.mean_P).T
        white = torch.linalg.solve_triangular(self.factor_PP, centred, upper=False)
        log_det = 2.0 * self.factor_PP.diagonal().log().sum()
        return -0.5 * (white.square().sum(0) + log_det + len(self.mean_P) * LOG_2PI)

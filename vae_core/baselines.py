"""What a model without latents reaches, in the same nats: the line that a VAE must pass."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vae_core.gaussian import LOG_2PI
from vae_core.linear import PixelSums


@dataclasses.dataclass(frozen=True)
class IndependentPixels:
    """A Gaussian for each pixel value on its own: mean (P,) and variance (P,)."""

    mean_P: Tensor
    variance_P: Tensor

    @classmethod
    def fit(cls, x_NP: Tensor, floor: float = 1e-6) -> IndependentPixels:
        """The maximum of the likelihood, variances floored (a border is always black)."""
        x = x_NP.double()
        return cls(x.mean(0), x.var(0, correction=0).clamp_min(floor))

    def log_prob(self, x_NP: Tensor) -> Tensor:
        """In nats, (N,)."""
        squared = (x_NP.to(self.mean_P) - self.mean_P).square() / self.variance_P
        return -0.5 * (squared + self.variance_P.log() + LOG_2PI).sum(1)


@dataclasses.dataclass(frozen=True)
class IndependentBits:
    """A Bernoulli for each binarised pixel value on its own: probability (P,)."""

    probability_P: Tensor

    @classmethod
    def fit(cls, x_NP: Tensor) -> IndependentBits:
        """Half a count is added to both sides (Jeffreys), so that nothing is impossible."""
        count = len(x_NP)
        return cls((x_NP.double().sum(0) + 0.5) / (count + 1.0))

    def log_prob(self, x_NP: Tensor) -> Tensor:
        """In nats, (N,)."""
        p = self.probability_P
        x = x_NP.to(p)
        return (x * p.log() + (1.0 - x) * torch.log1p(-p)).sum(1)


@dataclasses.dataclass(frozen=True)
class FullGaussian:
    """One Gaussian over all pixels: mean (P,) and Cholesky factor (P, P) of its covariance."""

    mean_P: Tensor
    factor_PP: Tensor

    @classmethod
    def fit(cls, sums: PixelSums, ridge: float = 1e-6) -> FullGaussian:
        """The maximum of the likelihood, `ridge` (squared intensity) added to every variance."""
        covariance = sums.covariance()
        covariance = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
        return cls(sums.mean(), torch.linalg.cholesky(covariance))

    def log_prob(self, x_NP: Tensor) -> Tensor:
        """In nats, (N,)."""
        centred = (x_NP.to(self.mean_P) - self.mean_P).T
        white = torch.linalg.solve_triangular(self.factor_PP, centred, upper=False)
        log_det = 2.0 * self.factor_PP.diagonal().log().sum()
        return -0.5 * (white.square().sum(0) + log_det + len(self.mean_P) * LOG_2PI)

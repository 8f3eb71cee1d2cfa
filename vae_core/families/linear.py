"""PCA and probabilistic PCA in closed form, from sums that one pass over the data gives.

The sums add up over batches and workers. Everything is in float64.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from vae_core.model import Model
from vae_core.normal import LOG_2PI, LOG_VAR_LIMIT


@dataclasses.dataclass
class PixelSums:
    """Sufficient statistics of images as vectors: count, Σx (P,), Σxxᵀ (P, P), about `origin`.

    origin (P,): a point near the mean (a first batch's mean, say), the same for all that are
    merged; without it a small variance around a large mean would drown in rounding.
    """

    count: Tensor
    sum_P: Tensor
    outer_PP: Tensor
    origin_P: Tensor

    @classmethod
    def zeros(cls, origin_P: Tensor) -> PixelSums:
        """Make sums of nothing yet, about an origin (P,)."""
        size = len(origin_P)
        return cls(
            torch.zeros((), dtype=torch.float64),
            torch.zeros(size, dtype=torch.float64),
            torch.zeros(size, size, dtype=torch.float64),
            origin_P.double(),
        )

    def add(self, x_NP: Tensor) -> None:
        """Add images as vectors, (N, P)."""
        centred = x_NP.to(self.origin_P) - self.origin_P
        self.count += len(centred)
        self.sum_P += centred.sum(0)
        self.outer_PP += centred.T @ centred

    def tensors(self) -> list[Tensor]:
        """For an all-reduce in place."""
        return [self.count, self.sum_P, self.outer_PP]

    def merge(self, other: PixelSums) -> None:
        """Raise ValueError where the origins differ."""
        if not torch.equal(self.origin_P, other.origin_P):
            raise ValueError("sums about different origins do not add up")
        self.count += other.count
        self.sum_P += other.sum_P
        self.outer_PP += other.outer_PP

    def mean(self) -> Tensor:
        """Return the mean image, (P,)."""
        return self.origin_P + self.sum_P / self.count

    def covariance(self) -> Tensor:
        """Return the maximum-likelihood one, divided by the count, (P, P)."""
        offset = self.sum_P / self.count
        return self.outer_PP / self.count - torch.outer(offset, offset)


@dataclasses.dataclass(frozen=True)
class ProbabilisticPCA:
    """x = W z + mean + noise, z ~ N(0, I_D), noise ~ N(0, σ² I_P).

    Tipping & Bishop 1999, "Probabilistic principal component analysis". components_PD are
    orthonormal, by falling variance; sigma2 = 0 makes it plain PCA, which has no likelihood.
    """

    mean_P: Tensor
    components_PD: Tensor
    variances_D: Tensor  # eigenvalues of the data's covariance along the components
    sigma2: float

    @classmethod
    def fit(cls, sums: PixelSums, dim: int) -> ProbabilisticPCA:
        """Fit the optimum of the likelihood (eqs. 7 and 8). Raises ValueError unless 0 < D <
        P."""
        size = len(sums.sum_P)
        if not 0 < dim < size:
            raise ValueError(f"{dim} components of {size} pixels; choose from 1 to {size - 1}")
        values, vectors = torch.linalg.eigh(sums.covariance())
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        sigma2 = float(values[dim:].mean())
        return cls(sums.mean(), vectors[:, :dim], values[:dim], sigma2)

    @property
    def weight_PD(self) -> Tensor:
        """W = U (Λ − σ² I)^½, up to a rotation (eq. 7)."""
        return self.components_PD * (self.variances_D - self.sigma2).clamp_min(0.0).sqrt()

    def project(self, x_NP: Tensor) -> Tensor:
        """PCA coordinates, (N, D)."""
        return (x_NP.to(self.mean_P) - self.mean_P) @ self.components_PD

    def reconstruct(self, x_NP: Tensor) -> Tensor:
        """Return the nearest point of the principal subspace, (N, P)."""
        return self.mean_P + self.project(x_NP) @ self.components_PD.T

    def posterior(self, x_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, D) and variance (D,) of z given x: diagonal, as W's columns are orthogonal.

        Section 3.3: M⁻¹ Wᵀ (x − mean) and σ² M⁻¹ with M = Wᵀ W + σ² I = Λ.
        """
        mean_ND = (x_NP.to(self.mean_P) - self.mean_P) @ self.weight_PD / self.variances_D
        return mean_ND, self.sigma2 / self.variances_D

    def log_prob(self, x_NP: Tensor) -> Tensor:
        """log N(x; mean, W Wᵀ + σ² I) in nats, (N,), without a P × P matrix."""
        if self.sigma2 <= 0.0:
            raise ValueError("no noise is left beside the components: the density is degenerate")
        centred = x_NP.to(self.mean_P) - self.mean_P
        along = centred @ self.components_PD
        rest = centred.square().sum(1) - along.square().sum(1)
        size, dim = self.components_PD.shape
        distance = (along.square() / self.variances_D).sum(1) + rest / self.sigma2
        log_sigma2 = torch.log(torch.tensor(self.sigma2, dtype=torch.float64))
        log_det = self.variances_D.log().sum() + (size - dim) * log_sigma2
        return -0.5 * (distance + log_det + size * LOG_2PI)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the model, (count, P)."""
        size, dim = self.components_PD.shape
        z = torch.randn(count, dim, dtype=torch.float64, generator=generator)
        noise = torch.randn(count, size, dtype=torch.float64, generator=generator)
        return z @ self.weight_PD.T + self.mean_P + self.sigma2**0.5 * noise


def sums_for(model: Model) -> PixelSums:
    """Empty sums for `solve`. Raises ValueError where the images are too large for them."""
    model.config.check_closed_form()
    return PixelSums.zeros(torch.full((model.config.pixels,), 0.5))


@torch.no_grad()
def solve(model: Model, sums: PixelSums) -> None:
    """Give a linear model the optimum in closed form.

    A Gaussian posterior becomes probabilistic PCA with its exact posterior, so that its ELBO is
    the log-likelihood; a deterministic one PCA. A fixed σ stays; a free one is set to the optimum.
    """
    found = ProbabilisticPCA.fit(sums, model.config.latent_dim)
    sigma = model.likelihood.get_parameter("raw_log_sigma")
    if model.config.likelihood.sigma is None:
        _require_noise(found.sigma2)
        log_sigma = 0.5 * math.log(found.sigma2)
        sigma.fill_(LOG_VAR_LIMIT * math.atanh(log_sigma / LOG_VAR_LIMIT))
    if model.config.posterior == "gaussian":
        sigma2 = float(torch.exp(2.0 * model.likelihood.scale().double()))
        weight = found.components_PD * (found.variances_D - sigma2).clamp_min(0.0).sqrt()
        # The posterior's precision is (Wᵀ W + σ² I) / σ², diagonal here.
        total_D = weight.square().sum(0) + sigma2
        to_mean = (weight / total_D).T
        log_var = math.log(sigma2) - torch.log(total_D)
        if log_var.min() <= 0.001 - LOG_VAR_LIMIT:
            raise ValueError(
                f"sigma {sigma2**0.5:.3g} is too small beside components of variance "
                f"{float(total_D.max()):.3g}: the posterior is narrower than this model can say; "
                "take a larger likelihood.sigma, or fewer latent dimensions"
            )
        raw = LOG_VAR_LIMIT * torch.atanh(log_var / LOG_VAR_LIMIT)
        model.encoder.get_parameter("raw_log_var").copy_(raw)
    else:
        weight, to_mean = found.components_PD, found.components_PD.T
    model.encoder.get_parameter("mean.weight").copy_(to_mean)
    model.encoder.get_parameter("mean.bias").copy_(-to_mean @ found.mean_P)
    layer = model.decoder.get_submodule("0")
    layer.get_parameter("weight").copy_(weight)
    layer.get_parameter("bias").copy_(found.mean_P)


def _require_noise(sigma2: float) -> None:
    if sigma2 < math.exp(2.0 * (0.001 - LOG_VAR_LIMIT)):
        raise ValueError(
            "no noise is left beside the components: the density is degenerate; take fewer "
            "latent dimensions, or fix likelihood.sigma"
        )

"""Moments of the aggregate posterior, from sums that add up over workers."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vae_core.normal import standard_normal


@dataclasses.dataclass
class LatentSums:
    """Sufficient statistics in float64: count, Σμ (D,), Σμμᵀ (D, D), Σσ² (D,)."""

    count: Tensor
    mean_D: Tensor
    outer_DD: Tensor
    var_D: Tensor

    @classmethod
    def zeros(cls, dim: int) -> LatentSums:
        """Make sums of nothing yet, of `dim` latents."""
        return cls(
            torch.zeros((), dtype=torch.float64),
            torch.zeros(dim, dtype=torch.float64),
            torch.zeros(dim, dim, dtype=torch.float64),
            torch.zeros(dim, dtype=torch.float64),
        )

    def add(self, mean_ND: Tensor, log_var_ND: Tensor | None) -> None:
        """log_var: None for codes without spread."""
        mean = mean_ND.double().cpu()
        self.count += len(mean)
        self.mean_D += mean.sum(0)
        self.outer_DD += mean.T @ mean
        if log_var_ND is not None:
            self.var_D += log_var_ND.double().exp().sum(0).cpu()

    def tensors(self) -> list[Tensor]:
        """For an all-reduce in place."""
        return [self.count, self.mean_D, self.outer_DD, self.var_D]


_RIDGE = 1e-6  # of a code's own variance; squared, of the mean variance


@dataclasses.dataclass(frozen=True)
class LatentMoments:
    """m (D,) and (Cov[μ] + E[diag σ²])⁻¹ (D, D), float64: the aggregate posterior's moments.

    For codes without spread E[diag σ²] is zero: it is a Gaussian fitted to the codes.
    """

    mean_D: Tensor
    precision_DD: Tensor

    @classmethod
    def fit(cls, sums: LatentSums) -> LatentMoments:
        """Fit the moments to sums over images."""
        mean_D = sums.mean_D / sums.count
        cov_DD = sums.outer_DD / sums.count - torch.outer(mean_D, mean_D)
        # E[diag σ²] keeps collapsed dimensions (Cov ≈ 0, σ² ≈ 1) from exploding the distance.
        total_DD = cov_DD + torch.diag(sums.var_D / sums.count)
        if not sums.var_D.any():
            # Codes have nothing to keep a dead unit from making it singular.
            variance_D = total_DD.diagonal()
            ridge_D = _RIDGE * variance_D + _RIDGE**2 * variance_D.mean() + _RIDGE**3
            total_DD = total_DD + torch.diag(ridge_D)
        return cls(mean_D, torch.linalg.inv(total_DD))

    def mahalanobis(self, mean_ND: Tensor) -> Tensor:
        """(μ − m)ᵀ (Cov[μ] + E[diag σ²])⁻¹ (μ − m), shape (N,), float64."""
        centred = mean_ND.double() - self.mean_D.to(mean_ND.device)
        return ((centred @ self.precision_DD.to(mean_ND.device)) * centred).sum(1)

    def covariance(self) -> Tensor:
        """Cov[μ] + E[diag σ²], (D, D), float64."""
        inverse = torch.linalg.inv(self.precision_DD)
        return 0.5 * (inverse + inverse.T)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the Gaussian of these moments, (count, D), float64."""
        factor = torch.linalg.cholesky(self.covariance())
        eps = standard_normal((count, len(self.mean_D)), generator).double().cpu()
        return self.mean_D + eps @ factor.T

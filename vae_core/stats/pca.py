"""PCA of many large images, without a matrix of pixels by pixels."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

OVERSAMPLED = 10
ITERATIONS = 8


@dataclasses.dataclass(frozen=True)
class PrincipalAxes:
    """mean (P,) and orthonormal axes (P, D), by falling variance."""

    mean_P: Tensor
    axes_PD: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, x_NP: Tensor, dim: int, *, seed: int = 0) -> PrincipalAxes:
        """By subspace iteration from a random start: Halko, Martinsson & Tropp 2011, "Finding
        structure with randomness", algorithms 4.4 and 5.1. Raises ValueError unless 0 < D ≤ N, P.
        """
        count, size = x_NP.shape
        if not 0 < dim <= min(count, size):
            raise ValueError(f"{dim} axes of {count} images of {size} pixel values")
        mean_P = x_NP.mean(0)
        width = min(dim + OVERSAMPLED, count, size)
        start = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
        basis = start.to(x_NP)
        for _ in range(ITERATIONS):
            along = torch.linalg.qr(_project(x_NP, mean_P, basis))[0]
            # The mean's part of Xᵀ A; nothing is centred in memory.
            back = x_NP.T @ along - torch.outer(mean_P, along.sum(0))
            basis = torch.linalg.qr(back)[0]
        _, _, turn = torch.linalg.svd(_project(x_NP, mean_P, basis), full_matrices=False)
        return cls(mean_P, basis @ turn.T[:, :dim])

    def project(self, x_NP: Tensor) -> Tensor:
        """PCA coordinates, (N, D)."""
        return _project(x_NP, self.mean_P, self.axes_PD)


def _project(x_NP: Tensor, mean_P: Tensor, axes_PD: Tensor) -> Tensor:
    return x_NP @ axes_PD - mean_P @ axes_PD

"""A linear probe: how much of the labels a linear classifier reads from embeddings."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features."""

    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor

    @classmethod
    def fit(
        cls, features_ND: Tensor, labels_N: Tensor, *, l2: float = 1e-3, iterations: int = 200
    ) -> LinearProbe:
        """Minimises mean cross-entropy + l2/2·‖W‖² by L-BFGS, in float64. Labels from 0."""
        x = features_ND.double()
        mean_D, scale_D = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
        x = (x - mean_D) / scale_D
        classes = int(labels_N.max()) + 1
        weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
        bias = torch.zeros(classes, dtype=torch.float64, device=x.device)
        weight.requires_grad_(True)
        bias.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=iterations,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-7,
            tolerance_change=1e-12,
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, labels_N)
            loss = loss + 0.5 * l2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        return cls(mean_D, scale_D, weight.detach(), bias.detach())

    def predict(self, features_ND: Tensor) -> Tensor:
        """Labels, (N,)."""
        x = (features_ND.double() - self.mean_D) / self.scale_D
        return (x @ self.weight_KD.T + self.bias_K).argmax(1)

    def accuracy(self, features_ND: Tensor, labels_N: Tensor) -> float:
        """Share of right labels."""
        return float((self.predict(features_ND) == labels_N).double().mean())

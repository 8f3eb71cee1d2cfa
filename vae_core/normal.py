"""Diagonal Gaussians: the encoder's posterior and the standard normal prior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)
LOG_VAR_LIMIT = 12.0


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is widened, float64 kept: exp and logsumexp never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def soft_bound(raw: Tensor, limit: float = LOG_VAR_LIMIT) -> Tensor:
    """Smoothly bounds to (-limit, limit). A hard clamp would erase the gradient outside."""
    return limit * torch.tanh(raw / limit)


def reparameterise(mean_ND: Tensor, log_var_ND: Tensor, eps_ND: Tensor) -> Tensor:
    """z = mean + exp(log_var / 2)·eps (Kingma & Welling 2014, section 2.4), shape (N, D)."""
    return mean_ND + torch.exp(0.5 * log_var_ND) * eps_ND


def normal_log_density(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, exp(log_var)) in nats, element by element."""
    return -0.5 * ((x - mean).square() * torch.exp(-log_var) + log_var + LOG_2PI)


def standard_normal(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Return standard normal noise, on the generator's device (the CPU without one)."""
    device = generator.device if generator is not None else None
    return torch.randn(tuple(shape), generator=generator, device=device)


def kl_to_standard_normal(mean_ND: Tensor, log_var_ND: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) ‖ N(0, I)) in nats, one term a dimension, shape (N, D).

    Kingma & Welling 2014, appendix B. In float32 whatever the autocast dtype.
    """
    mean, log_var = at_least_float32(mean_ND), at_least_float32(log_var_ND)
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var)

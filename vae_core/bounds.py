"""Bounds of log p(x) that tighten with more posterior samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vae_core.gaussian import LOG_2PI, at_least_float32, reparameterise
from vae_core.vae import VAE


def normal_log_prob(x_ND: Tensor, mean_ND: Tensor, log_var_ND: Tensor) -> Tensor:
    """log N(x; mean, diag exp(log_var)) in nats, summed over D, shape (N,)."""
    x, mean, log_var = (at_least_float32(t) for t in (x_ND, mean_ND, log_var_ND))
    return -0.5 * ((x - mean).square() * torch.exp(-log_var) + log_var + LOG_2PI).sum(-1)


def log_weights(model: VAE, x_NCHW: Tensor, eps_KND: Tensor) -> Tensor:
    """log p(x, z_k) − log q(z_k | x) of K posterior samples, shape (K, N), in nats.

    Their mean over K estimates the ELBO, their log-mean-exp the importance-weighted bound
    (Burda et al. 2016, eq. 8). Differentiable. All K decodings are held at once.
    """
    samples, count, dim = eps_KND.shape
    mean_ND, log_var_ND = model.encode(x_NCHW)
    z_KND = reparameterise(mean_ND, log_var_ND, eps_KND)
    params = model.decode(z_KND.reshape(samples * count, dim))
    target = model.likelihood.target(x_NCHW)
    repeated = target.expand(samples, *target.shape).reshape(samples * count, *target.shape[1:])
    log_likelihood = model.likelihood.log_prob(params, model.likelihood.scale(), repeated)
    prior = normal_log_prob(z_KND, torch.zeros_like(z_KND), torch.zeros_like(z_KND))
    posterior = normal_log_prob(z_KND, mean_ND, log_var_ND)
    return log_likelihood.reshape(samples, count) + prior - posterior


def importance_weighted_bound(log_weights_KN: Tensor) -> Tensor:
    """log (1/K) Σ_k w_k in nats, shape (N,): over samples, not over images.

    A lower bound of log p(x) in expectation, for K = 1 the ELBO (Burda et al. 2016, theorem 1).
    """
    return torch.logsumexp(log_weights_KN, dim=0) - math.log(len(log_weights_KN))


@torch.no_grad()
def log_likelihood(
    model: VAE,
    x_NCHW: Tensor,
    noise: Callable[[int], Tensor],
    *,
    samples: int,
    chunk: int = 64,
) -> Tensor:
    """The importance-weighted bound with many samples, in bounded memory, shape (N,), in nats.

    noise: the standard normal noise (N, D) of sample k. chunk: samples decoded at once. The
    result does not depend on it but for rounding.
    """
    total = torch.full((len(x_NCHW),), -math.inf, dtype=torch.float64, device=x_NCHW.device)
    for start in range(0, samples, chunk):
        eps_KND = torch.stack([noise(k) for k in range(start, min(start + chunk, samples))])
        part = torch.logsumexp(log_weights(model, x_NCHW, eps_KND).double(), dim=0)
        total = torch.logaddexp(total, part)
    return total - math.log(samples)

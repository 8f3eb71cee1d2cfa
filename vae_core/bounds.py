"""Bounds of log p(x) that tighten with more posterior samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vae_core.model import Model
from vae_core.normal import at_least_float32, normal_log_density
from vae_core.posteriors import Posterior


def normal_log_prob(x_ND: Tensor, mean_ND: Tensor, log_var_ND: Tensor) -> Tensor:
    """log N(x; mean, diag exp(log_var)) in nats, summed over D, shape (N,)."""
    x, mean, log_var = (at_least_float32(t) for t in (x_ND, mean_ND, log_var_ND))
    return normal_log_density(x, mean, log_var).sum(-1)


def log_weights(model: Model, target_NCHW: Tensor, eps_KND: Tensor) -> Tensor:
    """log p(x, z_k) − log q(z_k | x) of K posterior samples, shape (K, N), in nats.

    target: what `model.observe` gives. The weights' mean over K estimates the ELBO, their
    log-mean-exp the importance-weighted bound (Burda et al. 2016, eq. 8). All K decodings are
    in memory at once.
    """
    posterior = model.encode(target_NCHW)
    return _weights(model, target_NCHW, posterior, eps_KND)


def _weights(model: Model, target_NCHW: Tensor, posterior: Posterior, eps_KND: Tensor) -> Tensor:
    samples = len(eps_KND)
    z_KND = model.draw(posterior, eps_KND.to(posterior.mean_ND))
    params = model.decode(z_KND.flatten(0, 1))
    repeated = target_NCHW.expand(samples, *target_NCHW.shape).flatten(0, 1)
    log_likelihood = model.likelihood.log_prob(params, model.likelihood.scale(), repeated)
    prior = normal_log_prob(z_KND, torch.zeros_like(z_KND), torch.zeros_like(z_KND))
    own = normal_log_prob(z_KND, posterior.mean_ND, posterior.log_variance_ND)
    return log_likelihood.reshape(samples, -1) + prior - own


def importance_weighted_bound(log_weights_KN: Tensor) -> Tensor:
    """log (1/K) Σ_k w_k in nats, shape (N,): over samples, not over images.

    A lower bound of log p(x) in expectation, for K = 1 the ELBO (Burda et al. 2016, theorem 1).
    """
    return torch.logsumexp(log_weights_KN, dim=0) - math.log(len(log_weights_KN))


@torch.no_grad()
def log_likelihood(
    model: Model,
    target_NCHW: Tensor,
    noise: Callable[[int], Tensor],
    *,
    samples: int,
    chunk: int = 64,
) -> Tensor:
    """Return the importance-weighted bound with many samples, in bounded memory, shape (N,), in
    nats.

    noise: the standard normal noise (N, D) of sample k. chunk: samples decoded at once. The
    result does not depend on it but for rounding.
    """
    return bound_and_elbo(model, target_NCHW, noise, samples=samples, chunk=chunk)[0]


@torch.no_grad()
def bound_and_elbo(
    model: Model,
    target_NCHW: Tensor,
    noise: Callable[[int], Tensor],
    *,
    samples: int,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """`log_likelihood`, and the ELBO of the same samples: the mean log-weight. (N,) each."""
    posterior = model.encode(target_NCHW)
    total = torch.full(
        (len(target_NCHW),), -math.inf, dtype=torch.float64, device=target_NCHW.device
    )
    mean = torch.zeros_like(total)
    for start in range(0, samples, chunk):
        eps_KND = torch.stack([noise(k) for k in range(start, min(start + chunk, samples))])
        weights = _weights(model, target_NCHW, posterior, eps_KND).double()
        total = torch.logaddexp(total, torch.logsumexp(weights, dim=0))
        mean += weights.sum(0) / samples
    return total - math.log(samples), mean

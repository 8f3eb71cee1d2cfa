"""Likelihoods with one logit a pixel value."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vae_core.config import LikelihoodConfig
from vae_core.likelihoods.base import Likelihood, uniform_like
from vae_core.noise import BINARISATION, Noise
from vae_core.normal import at_least_float32


class Bernoulli(Likelihood):
    """Binarised pixels; params are logits. Kingma & Welling 2014, appendix C.1."""

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__(config)
        self.stochastic = config.binarisation == "stochastic"
        self.threshold = config.threshold

    def target(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        """Stochastic: 1 with the probability of the grey value (Salakhutdinov & Murray 2008)."""
        if not self.stochastic:
            return (x_NCHW > self.threshold).to(x_NCHW.dtype)
        if noise is None:
            raise ValueError("stochastic binarisation needs noise; give the step's or the images'")
        u = noise.uniform(BINARISATION, x_NCHW[0].numel() if len(x_NCHW) else 0)
        return (u.to(x_NCHW.device).reshape(x_NCHW.shape) < x_NCHW).to(x_NCHW.dtype)

    @override
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        logits, target = at_least_float32(params_NCHW), at_least_float32(target_NCHW)
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    @override
    def mean(self, params_NCHW: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(params_NCHW))

    @override
    def mode(self, params_NCHW: Tensor) -> Tensor:
        return (params_NCHW > 0).to(at_least_float32(params_NCHW).dtype)

    @override
    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.bernoulli(self.mean(params_NCHW), generator=generator)


# Around λ = 1/2 the normaliser's closed form is 0/0; its Taylor series takes over there.
_LOGIT_CUT = 0.05


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] whose logits are the decoder's, with the normaliser that a Bernoulli
    log-likelihood of grey pixels leaves out. Loaiza-Ganem & Cunningham 2019, eq. 7.
    """

    @override
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        logits, target = at_least_float32(params_NCHW), at_least_float32(target_NCHW)
        bernoulli = -F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (bernoulli + log_normaliser(logits)).sum(1)

    def mean(self, params_NCHW: Tensor) -> Tensor:
        """λ / (2λ − 1) + 1 / (2 tanh⁻¹(1 − 2λ)), eq. 8; in logits, 1 / (1 − e^−η) − 1 / η."""
        logits = at_least_float32(params_NCHW)
        near = logits.abs() < _LOGIT_CUT
        safe = torch.where(near, torch.ones_like(logits), logits)
        closed = -1.0 / torch.expm1(-safe) - 1.0 / safe
        series = 0.5 + logits / 12.0 - logits**3 / 720.0
        return torch.where(near, series, closed)

    @override
    def mode(self, params_NCHW: Tensor) -> Tensor:
        return (params_NCHW > 0).to(at_least_float32(params_NCHW).dtype)

    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """By the inverse of the distribution function: log1p(u·(e^η − 1)) / η."""
        logits = at_least_float32(params_NCHW)
        u = uniform_like(logits, generator)
        near = logits.abs() < 1e-3
        safe = torch.where(near, torch.ones_like(logits), logits)
        # Mirrored where η > 0, so that e^η never overflows.
        size = -safe.abs()
        drawn = torch.log1p(u * torch.expm1(size)) / size
        drawn = torch.where(safe > 0, 1.0 - drawn, drawn)
        return torch.where(near, u, drawn).clamp(0.0, 1.0)


def log_normaliser(logits: Tensor) -> Tensor:
    """log C(λ) of the continuous Bernoulli with λ = sigmoid(logits).

    C = η / tanh(η / 2): 2 tanh⁻¹(1 − 2λ) / (1 − 2λ) in logits; 2 at η = 0.
    """
    near = logits.abs() < _LOGIT_CUT
    safe = torch.where(near, torch.ones_like(logits), logits)
    half = 0.5 * safe
    closed = torch.log(safe.abs()) - torch.log(torch.tanh(half).abs())
    series = math.log(2.0) + logits**2 / 12.0 - 7.0 * logits**4 / 1440.0
    return torch.where(near, series, closed)

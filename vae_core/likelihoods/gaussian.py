"""Gaussian likelihoods, and where their σ comes from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from vae_core.all_reduce import Peers
from vae_core.config import LikelihoodConfig
from vae_core.likelihoods.base import Likelihood, normal_like
from vae_core.normal import LOG_2PI, at_least_float32, soft_bound


class SharedSigma(Likelihood):
    """N(x; params, σ²) with one σ for all pixels. Kingma & Welling 2014, appendix C.2."""

    @override
    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        error = at_least_float32(target_NCHW) - at_least_float32(params_NCHW)
        pixels = error[0].numel() if len(error) else 0
        constant = pixels * (log_sigma + 0.5 * LOG_2PI)
        # σ is taken in once for an image, not once for each of its pixels.
        squared_N = error.square().flatten(1).sum(1)
        return -0.5 * squared_N * torch.exp(-2.0 * log_sigma) - constant

    @override
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        error = at_least_float32(target_NCHW) - at_least_float32(params_NCHW)
        constant = error.shape[1] * (log_sigma + 0.5 * LOG_2PI)
        return -0.5 * error.square().sum(1) * torch.exp(-2.0 * log_sigma) - constant

    @override
    def mean(self, params_NCHW: Tensor) -> Tensor:
        return at_least_float32(params_NCHW)

    @override
    def mode(self, params_NCHW: Tensor) -> Tensor:
        return self.mean(params_NCHW)

    @override
    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.mean(params_NCHW) + log_sigma.exp() * normal_like(params_NCHW, generator)


class Gaussian(SharedSigma):
    """σ is a parameter of the model (Rybkin et al. 2021, σ-VAE), or fixed by the config."""

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__(config)
        start = torch.tensor(math.log(config.sigma if config.sigma is not None else 0.2))
        self.learned = config.sigma is None
        self.raw_log_sigma = nn.Parameter(start, requires_grad=self.learned)

    @override
    def scale(self) -> Tensor:
        return soft_bound(self.raw_log_sigma) if self.learned else self.raw_log_sigma


# Half a grey step: a σ below it would describe how pixels are rounded.
SIGMA_FLOOR = 0.5 / 255.0
_MEMORY = 0.99


class OptimalGaussian(SharedSigma):
    """At every step σ² is the mean squared error of the whole global batch, its optimum.

    Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders", eq. 7. It is
    detached and floored. Between steps a moving mean serves, until `freeze` fixes it for good.
    """

    needs_final_error = True

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__(config)
        self.squared_error: Tensor
        self.steps: Tensor
        self.register_buffer("squared_error", torch.tensor(0.04))
        self.register_buffer("steps", torch.tensor(0.0))

    @override
    def scale(self) -> Tensor:
        return 0.5 * torch.log(self.squared_error.clamp_min(SIGMA_FLOOR**2))

    @torch.no_grad()
    @override
    def batch_scale(self, params_NCHW: Tensor, target_NCHW: Tensor, peers: Peers) -> Tensor:
        if not self.training:
            return self.scale()
        error = at_least_float32(target_NCHW) - at_least_float32(params_NCHW)
        sums = torch.stack([error.square().sum(), error.new_tensor(float(error.numel()))])
        total, count = peers.sum(sums).unbind()
        mse = total / count
        # A batch that is not finite ends the step, and must leave nothing behind.
        finite = torch.isfinite(mse)
        steps = self.steps + finite
        keep = (1.0 - 1.0 / steps.clamp_min(1.0)).clamp_max(_MEMORY)
        moved = keep * self.squared_error + (1.0 - keep) * mse
        self.squared_error.copy_(torch.where(finite, moved, self.squared_error))
        self.steps.copy_(steps)
        return 0.5 * torch.log(mse.clamp_min(SIGMA_FLOOR**2))

    @torch.no_grad()
    def freeze(self, mean_squared_error: float) -> None:
        """Fix σ² (squared intensity): the optimum over the whole train split."""
        self.squared_error.fill_(mean_squared_error)


class PixelGaussian(Likelihood):
    """N(x; μ, σ²) with μ and σ of each pixel value from the decoder.

    Kingma & Welling 2014, appendix C.2, with the variance an output. Parameters: μ, raw log σ².
    """

    def _moments(self, params_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self._per_value(params_NCHW).unbind(2)
        return mean, soft_bound(raw)

    @override
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        mean, log_var = self._moments(params_NCHW)
        squared = (at_least_float32(target_NCHW) - mean).square()
        return -0.5 * (squared * torch.exp(-log_var) + log_var + LOG_2PI).sum(1)

    @override
    def mean(self, params_NCHW: Tensor) -> Tensor:
        return self._moments(params_NCHW)[0]

    @override
    def mode(self, params_NCHW: Tensor) -> Tensor:
        return self.mean(params_NCHW)

    @override
    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        mean, log_var = self._moments(params_NCHW)
        return mean + torch.exp(0.5 * log_var) * normal_like(mean, generator)

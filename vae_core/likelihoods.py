"""p(x | z): what the decoder's output says about pixels. Every constant is there."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config import LikelihoodConfig
from vae_core.gaussian import LOG_2PI, at_least_float32, soft_bound


class Likelihood(nn.Module, abc.ABC):
    """A likelihood over images in [0, 1]. `params` is what the decoder (and σ) gave.

    discrete: whether log_prob is a probability mass, so that bits per dimension mean something.
    """

    discrete: bool

    @abc.abstractmethod
    def target(self, x_NCHW: Tensor) -> Tensor:
        """The image as this likelihood sees it (binarised, say); the encoder sees it too."""

    @abc.abstractmethod
    def scale(self) -> Tensor:
        """log σ, a scalar; zero where there is none. Returned by the model's forward for DDP."""

    @abc.abstractmethod
    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        """log p(target | z) in nats, summed over pixels, shape (N,)."""

    @abc.abstractmethod
    def mean(self, params_NCHW: Tensor) -> Tensor:
        """E[x | z], shape (N, C, H, W)."""


def _sum_pixels(values_NCHW: Tensor) -> Tensor:
    return values_NCHW.flatten(1).sum(1)


class Bernoulli(Likelihood):
    """Binarised pixels; params are logits. Kingma & Welling 2014, appendix C.1."""

    discrete = True

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        self.threshold = config.threshold
        self._no_sigma: Tensor
        self.register_buffer("_no_sigma", torch.zeros(()), persistent=False)

    def target(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW > self.threshold).to(x_NCHW.dtype)

    def scale(self) -> Tensor:
        return self._no_sigma

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        logits, target = at_least_float32(params_NCHW), at_least_float32(target_NCHW)
        return -_sum_pixels(F.binary_cross_entropy_with_logits(logits, target, reduction="none"))

    def mean(self, params_NCHW: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(params_NCHW))


class Gaussian(Likelihood):
    """N(x; params, σ²) with one σ for all pixels. Kingma & Welling 2014, appendix C.2.

    σ is a parameter of the model (Rybkin et al. 2021, σ-VAE), or fixed by the config.
    """

    discrete = False

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        start = torch.tensor(math.log(config.sigma if config.sigma is not None else 0.2))
        self.raw_log_sigma = nn.Parameter(start, requires_grad=config.sigma is None)

    def target(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW

    def scale(self) -> Tensor:
        if not self.raw_log_sigma.requires_grad:
            return self.raw_log_sigma
        return soft_bound(self.raw_log_sigma)

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        error = at_least_float32(target_NCHW) - at_least_float32(params_NCHW)
        pixels = error[0].numel() if len(error) else 0
        constant = pixels * (log_sigma + 0.5 * LOG_2PI)
        return -0.5 * _sum_pixels(error.square()) * torch.exp(-2.0 * log_sigma) - constant

    def mean(self, params_NCHW: Tensor) -> Tensor:
        return at_least_float32(params_NCHW)


LIKELIHOODS: dict[str, Callable[[LikelihoodConfig], Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}

"""What every likelihood p(x | z) offers, and what they share."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_core.all_reduce import Peers
from vae_core.config import LIKELIHOOD_FACTS, LikelihoodConfig
from vae_core.noise import Noise
from vae_core.normal import at_least_float32


class Likelihood(nn.Module, abc.ABC):
    """A likelihood over images in [0, 1]. `params` is what the decoder (and σ) gave.

    discrete, params_per_value: as `LIKELIHOOD_FACTS` has them of its kind. params are
    (N, C·params_per_value, H, W) with the parameters of one channel next to each other.
    needs_final_error: whether `freeze` wants the train split's mean squared error after training.
    """

    needs_final_error: bool = False

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        facts = LIKELIHOOD_FACTS[config.kind]
        self.discrete = facts.discrete
        self.params_per_value = facts.outputs or 1
        self._no_sigma: Tensor
        self.register_buffer("_no_sigma", torch.zeros(()), persistent=False)

    def outputs(self, channels: int) -> int:
        """Numbers that the decoder gives for each pixel of so many channels."""
        return channels * self.params_per_value

    def target(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the image as this likelihood sees it (binarised, say); the encoder sees it too."""
        return x_NCHW

    def scale(self) -> Tensor:
        """log σ, a scalar; zero where there is none. Constant over pixels."""
        return self._no_sigma

    def batch_scale(self, params_NCHW: Tensor, target_NCHW: Tensor, peers: Peers) -> Tensor:
        """log σ for a training step; where σ is the batch's optimum, found here and remembered."""
        return self.scale()

    def freeze(self, mean_squared_error: float) -> None:
        """Fix what training left moving, from the train split's squared error a pixel value."""

    def log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        """log p(target | z) in nats, summed over pixels, shape (N,)."""
        return self.pixel_log_prob(params_NCHW, log_sigma, target_NCHW).flatten(1).sum(1)

    @abc.abstractmethod
    def pixel_log_prob(self, params_NCHW: Tensor, log_sigma: Tensor, target_NCHW: Tensor) -> Tensor:
        """log p(target | z) in nats of each pixel with all its channels, shape (N, H, W)."""

    @abc.abstractmethod
    def mean(self, params_NCHW: Tensor) -> Tensor:
        """E[x | z], shape (N, C, H, W)."""

    @abc.abstractmethod
    def mode(self, params_NCHW: Tensor) -> Tensor:
        """Return the most probable value of each pixel, shape (N, C, H, W)."""

    @abc.abstractmethod
    def sample(
        self, params_NCHW: Tensor, log_sigma: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a draw from p(x | z), shape (N, C, H, W)."""

    def _per_value(self, params_NCHW: Tensor) -> Tensor:
        """(N, C·Q, H, W) → (N, C, Q, H, W), in float32 at least."""
        grouped = params_NCHW.unflatten(1, (-1, self.params_per_value))
        return at_least_float32(grouped)


def normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise of a tensor's shape, type and device."""
    x = at_least_float32(like)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def uniform_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in (0, 1), never an end."""
    x = at_least_float32(like)
    drawn = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    tiny = torch.finfo(drawn.dtype).eps
    return drawn.clamp(tiny, 1.0 - tiny)


CHUNK_VALUES = 2**22  # parameters whose normalisers are in memory at once


def in_chunks(
    log_prob: Callable[[Tensor, Tensor], Tensor], params_NCHW: Tensor, target_NCHW: Tensor
) -> Tensor:
    """log_prob (N, …) of a batch, a few images at a time: bounded memory where params are many."""
    size = max(1, CHUNK_VALUES // max(1, params_NCHW[:1].numel()))
    chunks = zip(params_NCHW.split(size), target_NCHW.split(size), strict=True)
    return torch.cat([log_prob(params, target) for params, target in chunks])

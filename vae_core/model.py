"""What every trained model is to whoever trains, scores and shows it."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from vae_core.config import ModelConfig
from vae_core.likelihoods.base import Likelihood
from vae_core.moments import LatentMoments
from vae_core.noise import Noise
from vae_core.posteriors import Posterior, PosteriorFamily


class Model(nn.Module, abc.ABC):
    """Encodes, decodes, reconstructs and samples, whatever its family.

    Images are float (N, C, H, W) in [0, 1]. `observe` turns one into what the likelihood sees
    (binarised pixels, say), and that is what `encode` takes.

    Attributes:
        config: what it was built from.
        likelihood: p(x | z).
        posterior: what an encoder's output says of z.
        encoder: image → features.
        decoder: latents → the likelihood's parameters.
    """

    config: ModelConfig
    likelihood: Likelihood
    posterior: PosteriorFamily
    encoder: nn.Module
    decoder: nn.Module

    @property
    def has_prior(self) -> bool:
        """Whether p(z) is a part of it: then it has a KL, and samples are its own."""
        return self.posterior.has_prior

    @property
    def needs_final_error(self) -> bool:
        """Whether a last pass over the train split fixes what training left moving."""
        return self.likelihood.needs_final_error

    @abc.abstractmethod
    def compile_networks(self) -> None:
        """Compile in place, so that weights keep their names. The rest of a step is cheap."""

    @abc.abstractmethod
    def observe(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the image as the likelihood and the encoder see it.

        noise: for stochastic binarisation. Raises ValueError where it is needed and not given.
        """

    @abc.abstractmethod
    def encode(self, target_NCHW: Tensor) -> Posterior:
        """Return the posterior; its mean (N, D) is the embedding."""

    @abc.abstractmethod
    def draw(self, posterior: Posterior, eps: Tensor) -> Tensor:
        """Draw latents by standard normal noise of shape (…, N, D). A code has no spread."""

    @abc.abstractmethod
    def kl(self, posterior: Posterior) -> Tensor | None:
        """Return the KL to the prior in nats, (N, D); None without a prior."""

    @abc.abstractmethod
    def decode(self, z_ND: Tensor) -> Tensor:
        """Return the likelihood's parameters, (N, outputs, H, W)."""

    @abc.abstractmethod
    def reconstruct(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        """E[x | z = posterior mean], clamped to [0, 1] for display, (N, C, H, W)."""

    @abc.abstractmethod
    def show(self, z_ND: Tensor) -> Tensor:
        """E[x | z], clamped to [0, 1] for display, (N, C, H, W)."""

    @abc.abstractmethod
    def sample(
        self,
        count: int,
        generator: torch.Generator | None = None,
        codes: LatentMoments | None = None,
    ) -> Tensor:
        """E[x | z] of latents that are drawn, (count, C, H, W).

        From the prior, or without one from a Gaussian with the moments of training images' codes,
        which is no part of the model. Raises ValueError without both.
        """


def to_unit_range(pixels_NHWC: Tensor, *, channels_last: bool = False) -> Tensor:
    """Staged uint8 pixels → float32 in [0, 1], (N, C, H, W), in memory as requested."""
    x_NCHW = pixels_NHWC.permute(0, 3, 1, 2)
    if not channels_last:
        x_NCHW = x_NCHW.contiguous()
    return x_NCHW.float().div_(255.0)

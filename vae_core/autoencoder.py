"""The model: networks × likelihood × posterior. A VAE is the one with a Gaussian posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_core.config import ModelConfig
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.model import Model
from vae_core.moments import LatentMoments
from vae_core.networks.plain import DECODERS, ENCODERS
from vae_core.noise import Noise
from vae_core.normal import standard_normal
from vae_core.posteriors import POSTERIORS, Posterior


class Autoencoder(Model):
    """Encodes, decodes, reconstructs and samples, whatever the family: the config says which.

    Images are float (N, C, H, W) in [0, 1]. `observe` turns one into what the likelihood sees
    (binarised pixels, say), and that is what `encode` takes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.likelihood = LIKELIHOODS[config.likelihood.kind](config.likelihood)
        self.posterior = POSTERIORS[config.posterior](config)
        kind, channels = config.network.kind, config.image_shape[2]
        features = self.posterior.features_per_latent
        self.encoder = ENCODERS[kind](config, features)
        self.decoder = DECODERS[kind](config, self.likelihood.outputs(channels), self.encoder)

    def compile_networks(self) -> None:
        """Compile in place, so that weights keep their names. The rest of a step is cheap."""
        self.encoder.compile()
        self.decoder.compile()

    def observe(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the image as the likelihood and the encoder see it. noise: for stochastic
        binarisation.

        Raises ValueError where noise is needed and not given.
        """
        return self.likelihood.target(x_NCHW, noise)

    def encode(self, target_NCHW: Tensor) -> Posterior:
        """Return the posterior; its mean (N, D) is the embedding."""
        return self.posterior.read(self.encoder(target_NCHW))

    def draw(self, posterior: Posterior, eps: Tensor) -> Tensor:
        """Latents by standard normal noise of shape (…, N, D). A code has no spread."""
        return self.posterior.draw(posterior, eps)

    def kl(self, posterior: Posterior) -> Tensor | None:
        """KL to the prior in nats, (N, D); None for a deterministic posterior."""
        return self.posterior.kl(posterior)

    def decode(self, z_ND: Tensor) -> Tensor:
        """Return the likelihood's parameters, (N, outputs, H, W)."""
        return self.decoder(z_ND)

    def reconstruct(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        """E[x | z = posterior mean], clamped to [0, 1] for display, (N, C, H, W)."""
        return self.show(self.encode(self.observe(x_NCHW, noise)).mean_ND)

    def show(self, z_ND: Tensor) -> Tensor:
        """E[x | z], clamped to [0, 1] for display, (N, C, H, W)."""
        return self.likelihood.mean(self.decode(z_ND)).clamp(0.0, 1.0)

    def sample(
        self,
        count: int,
        generator: torch.Generator | None = None,
        codes: LatentMoments | None = None,
    ) -> Tensor:
        """E[x | z] of latents from the prior, (count, C, H, W).

        A deterministic posterior has no prior: its latents are drawn from a Gaussian fitted to
        the codes of training images, which is no part of the model. Raises ValueError without.
        """
        if not self.posterior.has_prior:
            if codes is None:
                raise ValueError(
                    "a deterministic autoencoder has no prior to sample; give the moments of its "
                    "codes to sample from a Gaussian fitted to them"
                )
            z_ND = codes.sample(count, generator)
        else:
            z_ND = standard_normal((count, self.config.latent_dim), generator)
        return self.show(z_ND.to(next(self.parameters())))

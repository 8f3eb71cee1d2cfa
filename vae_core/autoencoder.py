"""The model: networks × likelihood × posterior. A VAE is the one with a Gaussian posterior."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from vae_core.config import ModelConfig
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.model import Model
from vae_core.moments import LatentMoments
from vae_core.networks.plain import DECODERS, ENCODERS
from vae_core.noise import Noise
from vae_core.normal import standard_normal
from vae_core.posteriors import POSTERIORS, Posterior


class Autoencoder(Model):
    """Networks × likelihood × posterior, as the config says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.likelihood = LIKELIHOODS[config.likelihood.kind](config.likelihood)
        self.posterior = POSTERIORS[config.posterior](config)
        kind, channels = config.network.kind, config.image_shape[2]
        features = self.posterior.features_per_latent
        self.encoder = ENCODERS[kind](config, features)
        self.decoder = DECODERS[kind](config, self.likelihood.outputs(channels), self.encoder)

    @override
    def compile_networks(self) -> None:
        self.encoder.compile()
        self.decoder.compile()

    @override
    def observe(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        return self.likelihood.target(x_NCHW, noise)

    @override
    def encode(self, target_NCHW: Tensor) -> Posterior:
        return self.posterior.read(self.encoder(target_NCHW))

    @override
    def draw(self, posterior: Posterior, eps: Tensor) -> Tensor:
        return self.posterior.draw(posterior, eps)

    @override
    def kl(self, posterior: Posterior) -> Tensor | None:
        return self.posterior.kl(posterior)

    @override
    def decode(self, z_ND: Tensor) -> Tensor:
        return self.decoder(z_ND)

    @override
    def reconstruct(self, x_NCHW: Tensor, noise: Noise | None = None) -> Tensor:
        return self.show(self.encode(self.observe(x_NCHW, noise)).mean_ND)

    @override
    def show(self, z_ND: Tensor) -> Tensor:
        return self.likelihood.mean(self.decode(z_ND)).clamp(0.0, 1.0)

    @override
    def sample(
        self,
        count: int,
        generator: torch.Generator | None = None,
        codes: LatentMoments | None = None,
    ) -> Tensor:
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

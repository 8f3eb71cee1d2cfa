"""Plain autoencoders: one code an image, no prior; sparse, contractive and denoising ones too."""

from __future__ import annotations

from vae_core.config import ModelConfig
from vae_core.families.base import NetworkFamily


class PlainAutoencoders(NetworkFamily):
    """A bottleneck that is trained to reconstruct."""

    name = "autoencoder"

    def owns(self, config: ModelConfig) -> bool:
        """Whether it has a code without a distribution, and networks that are not linear."""
        return config.posterior == "deterministic" and config.network.kind != "linear"

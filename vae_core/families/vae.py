"""Variational autoencoders: a Gaussian posterior over latents, and a prior."""

from __future__ import annotations

from vae_core.config import ModelConfig
from vae_core.families.base import NetworkFamily


class VariationalAutoencoders(NetworkFamily):
    """Kingma & Welling 2014, "Auto-encoding variational Bayes"."""

    name = "vae"

    def owns(self, config: ModelConfig) -> bool:
        """Whether it has a prior, and networks that are not linear."""
        return config.posterior == "gaussian" and config.network.kind != "linear"

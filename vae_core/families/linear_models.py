"""Linear models: PCA and probabilistic PCA in closed form, linear VAEs by gradient."""

from __future__ import annotations

from vae_core.config import ModelConfig
from vae_core.families.base import NetworkFamily


class LinearModels(NetworkFamily):
    """Tipping & Bishop 1999; by gradient Lucas et al. 2019, "Don't blame the ELBO!"."""

    name = "linear"

    def owns(self, config: ModelConfig) -> bool:
        """Whether encoder and decoder are one linear layer each."""
        return config.network.kind == "linear"

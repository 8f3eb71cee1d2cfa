"""What the encoder says about an image: a distribution over latents, or one code."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from vae_core.config import ModelConfig
from vae_core.normal import at_least_float32, kl_to_standard_normal, reparameterise, soft_bound


class Posterior(NamedTuple):
    """mean: the embedding. log_var: None for a code without spread."""

    mean_ND: Tensor
    log_var_ND: Tensor | None

    @property
    def log_variance_ND(self) -> Tensor:
        """The log-variance. Raises ValueError where there is none."""
        if self.log_var_ND is None:
            raise ValueError("a deterministic posterior has no variance; this needs a Gaussian one")
        return self.log_var_ND


class PosteriorFamily(abc.ABC):
    """features_per_latent: how many numbers the encoder gives for each latent dimension.

    has_prior: whether there is a KL, and a prior to sample.
    """

    features_per_latent: int
    has_prior: bool

    @abc.abstractmethod
    def read(self, features: Tensor) -> Posterior:
        """Return the encoder's features, (N, features_per_latent·D), as a posterior."""

    @abc.abstractmethod
    def draw(self, posterior: Posterior, eps: Tensor) -> Tensor:
        """Return a sample by standard normal noise of shape (…, N, D), which the result has,
        too."""

    @abc.abstractmethod
    def kl(self, posterior: Posterior) -> Tensor | None:
        """KL to the prior in nats, (N, D); None where there is no prior."""


class GaussianPosterior(PosteriorFamily):
    """N(mean, diag exp(log_var)) with the prior N(0, I). Kingma & Welling 2014, section 3."""

    features_per_latent = 2
    has_prior = True

    def __init__(self, config: ModelConfig) -> None:
        pass

    @override
    def read(self, features: Tensor) -> Posterior:
        # Half precision ends here: a density must be that of the sample that was drawn.
        mean_ND, raw_ND = at_least_float32(features).chunk(2, dim=1)
        return Posterior(mean_ND, soft_bound(raw_ND))

    @override
    def draw(self, posterior: Posterior, eps: Tensor) -> Tensor:
        return reparameterise(posterior.mean_ND, posterior.log_variance_ND, eps)

    @override
    def kl(self, posterior: Posterior) -> Tensor | None:
        return kl_to_standard_normal(posterior.mean_ND, posterior.log_variance_ND)


class DeterministicPosterior(PosteriorFamily):
    """One code an image, linear or squashed into (0, 1); no prior, no KL."""

    features_per_latent = 1
    has_prior = False

    def __init__(self, config: ModelConfig) -> None:
        self.squash = config.code == "sigmoid"

    @override
    def read(self, features: Tensor) -> Posterior:
        code_ND = at_least_float32(features)
        return Posterior(torch.sigmoid(code_ND) if self.squash else code_ND, None)

    @override
    def draw(self, posterior: Posterior, eps: Tensor) -> Tensor:
        return posterior.mean_ND.expand(eps.shape)

    @override
    def kl(self, posterior: Posterior) -> Tensor | None:
        return None


POSTERIORS: dict[str, Callable[[ModelConfig], PosteriorFamily]] = {
    "gaussian": GaussianPosterior,
    "deterministic": DeterministicPosterior,
}

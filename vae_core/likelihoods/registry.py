"""The likelihoods by name: p(x | z), what the decoder's output says about pixels."""

from __future__ import annotations

from collections.abc import Callable

from vae_core.config import LikelihoodConfig
from vae_core.likelihoods.base import Likelihood
from vae_core.likelihoods.bernoulli import Bernoulli, ContinuousBernoulli
from vae_core.likelihoods.discrete import Categorical, LogisticMixture
from vae_core.likelihoods.gaussian import Gaussian, OptimalGaussian, PixelGaussian

LIKELIHOODS: dict[str, Callable[[LikelihoodConfig], Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "categorical": Categorical,
    "logistic_mixture": LogisticMixture,
    "gaussian": Gaussian,
    "optimal_gaussian": OptimalGaussian,
    "pixel_gaussian": PixelGaussian,
}

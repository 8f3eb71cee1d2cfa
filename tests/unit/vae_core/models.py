"""Small models and images that the tests of the core share."""

from __future__ import annotations

import torch

from vae_core.autoencoder import Autoencoder
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.noise import ImageNoise, StepNoise
from vae_core.objectives.objectives import LossTerms, Objective


def config_of(
    network: str = "mlp",
    likelihood: str = "gaussian",
    *,
    shape: tuple[int, int, int] = (8, 9, 1),
    latent_dim: int = 3,
    tied: bool = False,
    binarisation: str = "threshold",
    **model,
) -> ModelConfig:
    return ModelConfig(
        image_shape=shape,
        latent_dim=latent_dim,
        network=NetworkConfig(kind=network, widths=(6, 5), hidden=12, depth=1, tied=tied),
        likelihood=LikelihoodConfig(kind=likelihood, binarisation=binarisation),
        **model,
    )


def model_of(network: str = "mlp", likelihood: str = "gaussian", **options) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(config_of(network, likelihood, **options))


def images(count: int, shape: tuple[int, int, int] = (8, 9, 1)) -> torch.Tensor:
    """Smooth stripes in [0, 1], (count, C, H, W) float32."""
    height, width, channels = shape
    size = height * width * channels
    rows = torch.arange(count * size, dtype=torch.float32).reshape(count, channels, height, width)
    return torch.sin(rows * 0.37).square()


def terms_of(
    model: Autoencoder, x: torch.Tensor, *, step: int = 0, seed: int = 0, **objective
) -> LossTerms:
    """What an objective makes of a batch."""
    noise = StepNoise(seed=seed, step=step, batch=len(x))
    size = objective.pop("dataset_size", len(x))
    module = Objective(model, ObjectiveConfig(**objective), dataset_size=size)
    return module(x, noise, step)


def image_noise_of(count: int, seed: int = 0) -> ImageNoise:
    """Noise of images whose keys are 0 to count - 1."""
    keys = torch.stack([torch.zeros(count), torch.arange(count)], dim=1).long()
    return ImageNoise(seed=seed, keys_N2=keys)

"""Encoders (image → features) and decoders (latent → image-shaped parameters)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from vae_core.config import ModelConfig


def _mlp_layers(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
    return layers


def mlp_encoder(config: ModelConfig) -> nn.Module:
    """(N, C, H, W) → (N, 2D)."""
    widths = list(config.network.widths)
    layers = _mlp_layers([config.pixels, *widths])
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], 2 * config.latent_dim))


def mlp_decoder(config: ModelConfig, params_per_value: int = 1) -> nn.Module:
    """(N, D) → (N, C·params_per_value, H, W)."""
    height, width, channels = config.image_shape
    widths = list(config.network.widths)[::-1]
    layers = _mlp_layers([config.latent_dim, *widths])
    last = nn.Linear(widths[-1], config.pixels * params_per_value)
    shape = (channels * params_per_value, height, width)
    return nn.Sequential(*layers, last, nn.Unflatten(1, shape))


def halvings(config: ModelConfig) -> list[tuple[int, int]]:
    """(H, W) at each resolution, from the image down; odd sizes round up."""
    height, width, _ = config.image_shape
    sizes = [(height, width)]
    for _ in config.network.widths:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def conv_encoder(config: ModelConfig) -> nn.Module:
    """(N, C, H, W) → (N, 2D); one strided convolution a halving."""
    layers: list[nn.Module] = []
    channels = config.image_shape[2]
    for width in config.network.widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.SiLU()]
        channels = width
    height, width = halvings(config)[-1]
    hidden = config.network.hidden
    layers += [nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 2 * config.latent_dim))


def conv_decoder(config: ModelConfig, params_per_value: int = 1) -> nn.Module:
    """(N, D) → (N, C·params_per_value, H, W).

    Mirrors the encoder's resolutions exactly, so any H and W do.
    """
    sizes = halvings(config)[::-1]
    widths = list(config.network.widths)[::-1]
    (height, width), hidden = sizes[0], config.network.hidden
    layers: list[nn.Module] = [
        nn.Linear(config.latent_dim, hidden),
        nn.SiLU(),
        nn.Linear(hidden, widths[0] * height * width),
        nn.SiLU(),
        nn.Unflatten(1, (widths[0], height, width)),
    ]
    outputs = [*widths[1:], widths[-1]]
    for n_in, n_out, small, large in zip(widths, outputs, sizes[:-1], sizes[1:], strict=True):
        # (n - 1)·2 - 2 + 3 + padding gives 2n - 1 or 2n: the size that the encoder halved.
        padding = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
        layers.append(
            nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=padding)
        )
        layers.append(nn.SiLU())
    outputs_per_pixel = config.image_shape[2] * params_per_value
    layers.append(nn.Conv2d(widths[-1], outputs_per_pixel, 3, padding=1))
    return nn.Sequential(*layers)


ENCODERS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "mlp": mlp_encoder,
    "conv": conv_encoder,
}
DECODERS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "mlp": mlp_decoder,
    "conv": conv_decoder,
}


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def split_moments(features_N2D: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's output as (mean, raw log-variance), each (N, D)."""
    mean_ND, raw_ND = features_N2D.chunk(2, dim=1)
    return mean_ND, raw_ND

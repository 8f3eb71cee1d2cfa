"""Residual networks: pre-activated blocks with GroupNorm and SiLU at each resolution.

He et al. 2016, "Identity mappings in deep residual networks", figure 4e, with the normalisation of
Wu & He 2018: GroupNorm sees one image at a time, so an image's numbers do not depend on its batch.
"""

from __future__ import annotations

import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vae_core.config import ModelConfig
from vae_core.networks.resolutions import halved
from vae_core.networks.stack import Stack

GROUPS = 8
LEAST_VALUES = 16  # a normalisation over fewer would erase what it is given


def _norm(channels: int, size: tuple[int, int]) -> nn.Module:
    """At most GROUPS groups, fewer where one would hold too few values to have moments of."""
    pixels, groups = size[0] * size[1], math.gcd(channels, GROUPS)
    while groups > 1 and channels // groups * pixels < LEAST_VALUES:
        groups //= 2
    return nn.GroupNorm(groups, channels) if channels * pixels >= LEAST_VALUES else nn.Identity()


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the shape unchanged; the identity at the start."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        # Starting from the identity lets deep stacks train (Zhang et al. 2019, "Fixup").
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.body = Stack(
            _norm(channels, size),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels, size),
            nn.SiLU(),
            last,
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Enlarge(nn.Module):
    """To an exact size by nearest neighbours, then a convolution.

    Odena et al. 2016, "Deconvolution and checkerboard artifacts".
    """

    def __init__(self, n_in: int, n_out: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, size=self.size, mode="nearest"))


def _blocks(channels: int, depth: int, size: tuple[int, int]) -> list[nn.Module]:
    return [ResidualBlock(channels, size) for _ in range(depth)]


def residual_encoder(config: ModelConfig, features: int) -> nn.Module:
    """(N, C, H, W) → (N, features·D); a strided convolution between resolutions."""
    widths, depths = config.network.widths, config.network.depths
    layers: list[nn.Module] = [nn.Conv2d(config.image_shape[2], widths[0], 3, padding=1)]
    sizes = halved(config.image_shape, len(widths) - 1)
    layers += _blocks(widths[0], depths[0], sizes[0])
    steps = zip(itertools.pairwise(widths), depths[1:], sizes[1:], strict=True)
    for (n_in, n_out), depth, size in steps:
        layers.append(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1))
        layers += _blocks(n_out, depth, size)
    height, width = sizes[-1]
    last = nn.Linear(widths[-1] * height * width, features * config.latent_dim)
    norm = _norm(widths[-1], sizes[-1])
    return Stack(*layers, norm, nn.SiLU(), nn.Flatten(), last)


def residual_decoder(config: ModelConfig, outputs: int, encoder: nn.Module) -> nn.Module:
    """(N, D) → (N, outputs, H, W)."""
    widths, depths = config.network.widths[::-1], config.network.depths[::-1]
    sizes = halved(config.image_shape, len(widths) - 1)[::-1]
    height, width = sizes[0]
    layers: list[nn.Module] = [
        nn.Linear(config.latent_dim, widths[0] * height * width),
        nn.Unflatten(1, (widths[0], height, width)),
        *_blocks(widths[0], depths[0], sizes[0]),
    ]
    steps = zip(itertools.pairwise(widths), depths[1:], sizes[1:], strict=True)
    for (n_in, n_out), depth, size in steps:
        layers.append(Enlarge(n_in, n_out, size))
        layers += _blocks(n_out, depth, size)
    return Stack(
        *layers,
        _norm(widths[-1], sizes[-1]),
        nn.SiLU(),
        nn.Conv2d(widths[-1], outputs, 3, padding=1),
    )

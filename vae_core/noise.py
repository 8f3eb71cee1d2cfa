"""Noise that belongs to an image or to a step, never to a worker.

Evaluation noise is a pure function of (seed, image, k, latent dimension): a counter-based
generator (Philox4x32-10; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
gives the same numbers in any batch, order and process. Written with int64 arithmetic, so that
it runs on any torch device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter_N4: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox4x32. Words are 32-bit values in int64; (N, 4) → (N, 4)."""
    c0, c1, c2, c3 = counter_N4.unbind(-1)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _mul_32x32(c0, _MULTIPLIERS[0])
        high1, low1 = _mul_32x32(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _mul_32x32(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    # The product wraps in int64, its 64 bits are right; the mask undoes the sign extension.
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def image_keys(image_ids: list[str]) -> np.ndarray:
    """Return the first 64 bits of each image id (hex digits), as two 32-bit words: (N, 2) int64."""
    words = np.array([int(image_id[:16], 16) for image_id in image_ids], dtype=np.uint64)
    pair = np.stack([words >> np.uint64(32), words & np.uint64(_MASK)], axis=-1)
    return pair.reshape(-1, 2).astype(np.int64)


def _image_uniform(keys_N2: Tensor, *, seed: int, k: int, dim: int) -> Tensor:
    """Uniform in (0, 1), float64, (N, dim), dim a multiple of four."""
    n, blocks = len(keys_N2), dim // 4
    block = torch.arange(blocks, device=keys_N2.device).expand(n, blocks)
    counter = torch.stack(
        [
            keys_N2[:, :1].expand(n, blocks),
            keys_N2[:, 1:].expand(n, blocks),
            torch.full_like(block, k),
            block,
        ],
        dim=-1,
    )
    words = philox4x32(counter.reshape(-1, 4), (seed & _MASK, (seed >> 32) & _MASK))
    return ((words.double() + 0.5) / 2.0**32).reshape(n, dim)


def image_noise(keys_N2: Tensor, *, seed: int, k: int, dim: int) -> Tensor:
    """Return standard normal noise of sample k of each image: (N, dim) float32.

    keys_N2 comes from `image_keys`. The same image draws the same noise in any batch.
    """
    # Box–Muller on pairs of words, in float64 so that rounding hides no device difference.
    u = _image_uniform(keys_N2, seed=seed, k=k, dim=4 * math.ceil(dim / 4))
    radius = torch.sqrt(-2.0 * torch.log(u[:, 0::2]))
    angle = 2.0 * math.pi * u[:, 1::2]
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return normal.reshape(len(keys_N2), -1)[:, :dim].float()


def image_uniform(keys_N2: Tensor, *, seed: int, k: int, dim: int) -> Tensor:
    """Uniform noise in [0, 1) of each image: (N, dim) float32. k: as in `image_noise`."""
    u = _image_uniform(keys_N2, seed=seed, k=k, dim=4 * math.ceil(dim / 4))
    # To 24 bits and never up: rounding to the nearest float32 could give 1.
    return (torch.floor(u[:, :dim] * 2.0**24) / 2.0**24).float()


def _step_generator(
    seed: int, step: int, stream: int, device: torch.device | str
) -> torch.Generator:
    mixed = seed * 0x9E3779B97F4A7C15 + step + stream * 0xD1B54A32D192ED03
    return torch.Generator(device).manual_seed(mixed % 2**63)


# What noise is for: each use has a stream of its own. The latent stream holds samples k.
LATENT, BINARISATION, CORRUPTION, PROBES, AUGMENTATION = range(5)
# Far above any number of posterior samples.
_IMAGE_STREAM = 1 << 28


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepNoise:
    """The noise of a rank's share of one training step.

    batch: images of the whole global batch; positions: this rank's, all if None. An image's noise
    depends on its place in the global batch, not on how many ranks there are. It is drawn on
    `device`: kinds of devices have numbers of their own.
    """

    seed: int
    step: int
    batch: int
    positions: slice | Tensor | None = None
    device: torch.device | str = "cpu"

    def part(self, rows: slice) -> StepNoise:
        """Return that of some of the share's images."""
        if isinstance(self.positions, Tensor):
            return dataclasses.replace(self, positions=self.positions[rows])
        rows_of_batch = range(self.batch)[self.positions or slice(None)][rows]
        return dataclasses.replace(self, positions=slice(rows_of_batch.start, rows_of_batch.stop))

    def normal(self, stream: int, dim: int) -> Tensor:
        """Return standard normal, (N, dim), N images of the share."""
        generator = _step_generator(self.seed, self.step, stream, self.device)
        drawn = torch.randn(self.batch, dim, generator=generator, device=self.device)
        return self._share(drawn)

    def uniform(self, stream: int, dim: int) -> Tensor:
        """Uniform in [0, 1), (N, dim)."""
        generator = _step_generator(self.seed, self.step, stream, self.device)
        return self._share(torch.rand(self.batch, dim, generator=generator, device=self.device))

    def _share(self, drawn: Tensor) -> Tensor:
        return drawn if self.positions is None else drawn[self.positions]

    def latent(self, samples: int, dim: int) -> Tensor:
        """Return standard normal noise of K posterior samples, (K, N, dim)."""
        drawn = self.normal(LATENT, samples * dim)
        return drawn.reshape(-1, samples, dim).transpose(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNoise:
    """The noise of images in evaluation: the same for an image in any batch, order and process."""

    seed: int
    keys_N2: Tensor

    def normal(self, stream: int, dim: int) -> Tensor:
        """Return standard normal, (N, dim)."""
        k = _IMAGE_STREAM + stream
        return image_noise(self.keys_N2, seed=self.seed, k=k, dim=dim)

    def uniform(self, stream: int, dim: int) -> Tensor:
        """Uniform in [0, 1), (N, dim)."""
        k = _IMAGE_STREAM + stream
        return image_uniform(self.keys_N2, seed=self.seed, k=k, dim=dim)

    def sample(self, k: int, dim: int) -> Tensor:
        """Return standard normal noise of posterior sample k, (N, dim)."""
        return image_noise(self.keys_N2, seed=self.seed, k=k, dim=dim)

    def latent(self, samples: int, dim: int) -> Tensor:
        """Return standard normal noise of K posterior samples, (K, N, dim)."""
        return torch.stack([self.sample(k, dim) for k in range(samples)])


class Noise(Protocol):
    """What a model draws its noise from: `StepNoise` in training, `ImageNoise` after it."""

    def normal(self, stream: int, dim: int) -> Tensor:
        """Draw standard normal numbers, (N, dim), of one stream."""
        ...

    def uniform(self, stream: int, dim: int) -> Tensor:
        """Draw uniform numbers in (0, 1), (N, dim), of one stream."""
        ...

    def latent(self, samples: int, dim: int) -> Tensor:
        """Draw standard normal latents, (samples, N, dim)."""
        ...

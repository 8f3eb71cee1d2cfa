"""Noise that belongs to an image or to a step, never to a worker.

Evaluation noise is a pure function of (seed, image, k, latent dimension): a counter-based
generator (Philox4x32-10; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
gives the same numbers in any batch, order and process. Written with int64 arithmetic, so that
it runs on any torch device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter_N4: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox4x32. Words are 32-bit values held in int64; (N, 4) → (N, 4)."""
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
    """The first 64 bits of each image id (hex digits), as two 32-bit words: (N, 2) int64."""
    words = np.array([int(image_id[:16], 16) for image_id in image_ids], dtype=np.uint64)
    pair = np.stack([words >> np.uint64(32), words & np.uint64(_MASK)], axis=-1)
    return pair.reshape(-1, 2).astype(np.int64)


def image_noise(keys_N2: Tensor, *, seed: int, k: int, dim: int) -> Tensor:
    """Standard normal noise of sample k of each image: (N, dim) float32.

    keys_N2 comes from `image_keys`. The same image draws the same noise in any batch.
    """
    n, blocks = len(keys_N2), math.ceil(dim / 4)
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
    # Box–Muller on pairs of words, in float64 so that rounding hides no device difference.
    u = (words.double() + 0.5) / 2.0**32
    radius = torch.sqrt(-2.0 * torch.log(u[:, 0::2]))
    angle = 2.0 * math.pi * u[:, 1::2]
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return normal.reshape(n, blocks * 4)[:, :dim].float()


def step_noise(*, seed: int, step: int, batch: int, dim: int) -> Tensor:
    """Training noise of one whole global batch: (batch, dim) float32.

    A rank takes the rows of its positions in the global batch, so the noise of an image does
    not depend on how many ranks there are.
    """
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step) % 2**63)
    return torch.randn(batch, dim, generator=generator)

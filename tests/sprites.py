"""Pictures whose factors are known, after dSprites (Matthey et al. 2017): shape, scale, x and y."""

from __future__ import annotations

import numpy as np

SIZES = (3, 3, 8, 8)  # values of shape, scale, x, y
SIDE = 16


def draw(factors_NF: np.ndarray) -> np.ndarray:
    """White shapes on black, (N, 1, SIDE, SIDE) float32 in {0, 1}, from integer factors."""
    shape, scale, column, row = (factors_NF[:, i].reshape(-1, 1, 1) for i in range(4))
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64) + 0.5
    dx, dy = x - (4.0 + column * 8.0 / 7.0), y - (4.0 + row * 8.0 / 7.0)
    radius = 2.0 + 0.9 * scale
    square = np.maximum(abs(dx), abs(dy)) < 0.8 * radius
    disc = dx**2 + dy**2 < radius**2
    bar = (abs(dx) < 0.35 * radius) & (abs(dy) < 1.4 * radius)
    pixels = np.choose(np.broadcast_to(shape, square.shape), [square, disc, bar])
    return pixels[:, None].astype(np.float32)


def everything() -> np.ndarray:
    """Every combination of factors, (N, 4)."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in SIZES), indexing="ij"), -1).reshape(-1, 4)


def random_factors(count: int, generator: np.random.Generator) -> np.ndarray:
    return np.stack([generator.integers(0, n, count) for n in SIZES], axis=1)

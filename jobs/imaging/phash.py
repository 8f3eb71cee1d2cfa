"""A perceptual hash of staged pixels: near duplicates differ in few of its 64 bits.

The signs, around their median, of the 8×8 lowest frequencies of a 32×32 grey version (Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions", section 3.2.1). A Hamming
distance under about 10 means that two pictures look alike. `bit_count(xor(a, b))` in SQL.
"""

from __future__ import annotations

import functools

import numpy as np

SIDE, LOW = 32, 8
BLOCK_VALUES = 1 << 18  # converted at a time, so that they stay in the cache
LUMA = np.array([5.0, 9.0, 2.0])  # of 16
# Whole numbers small enough for every sum to be exact, so that no machine rounds another bit out
# of it: 255 · 16 · SIDE · 64 < 2²⁴ in float32, which is fast; wide images need finer weights.
NARROW = 128
SCALE: dict[type, int] = {np.float32: 64, np.float64: 1 << 10}


@functools.cache
def _frequencies(length: int, scale: int) -> np.ndarray:
    """(LOW, length): frequencies 1 to LOW of the DCT-II of `length` pixels averaged into SIDE.

    Frequency 0, the mean, tells nothing.
    """
    edges = np.linspace(0, length, SIDE + 1)
    pixels = np.arange(length)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    average = shared.clip(0) * SIDE / length
    n, k = np.arange(SIDE), np.arange(1, LOW + 1)[:, None]
    return np.rint(scale * np.cos(np.pi * (2 * n + 1) * k / (2 * SIDE)) @ average)


def perceptual_hashes(pixels_NHWC: np.ndarray) -> np.ndarray:
    """int64 (N,) of uint8 images with 1 or 3 channels."""
    count, height, width, channels = pixels_NHWC.shape
    kind = np.float32 if width <= NARROW else np.float64
    luma = LUMA if channels == 3 else np.array([16.0])
    columns = np.kron(_frequencies(width, SCALE[kind]), luma).astype(kind)
    flat = pixels_NHWC.reshape(count * height, width * channels)
    lines = np.empty((count * height, LOW), kind)
    step = max(1, BLOCK_VALUES // flat.shape[1])
    for start in range(0, len(flat), step):
        lines[start : start + step] = flat[start : start + step].astype(kind) @ columns.T
    rows = _frequencies(height, SCALE[np.float64])
    low = rows @ lines.reshape(count, height, LOW).astype(np.float64)
    low = low.reshape(count, LOW * LOW)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">i8").astype(np.int64)[:, 0]

"""The sizes that an image passes through on its way down."""

from __future__ import annotations


def halved(image_shape: tuple[int, int, int], times: int) -> list[tuple[int, int]]:
    """(H, W) at each resolution, from the image down; odd sizes round up."""
    height, width, _ = image_shape
    sizes = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes

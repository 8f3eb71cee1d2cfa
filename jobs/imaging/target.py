"""The size and layout that images are staged to."""

from __future__ import annotations

import dataclasses
from typing import Literal

Fit = Literal["crop", "pad", "stretch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What staged pixels look like.

    fit: crop the middle to the aspect, pad with the background, or stretch. background: RGB; also
    what shows through transparent pixels. max_pixels: of a source image, judged by its header, of
    four bytes each; of more, fewer. exact: decode JPEG at full size always.
    """

    image_shape: tuple[int, int, int]
    fit: Fit = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 100_000_000
    exact: bool = False

"""Images as a page shows them: small, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from bokeh.palettes import Inferno256
from PIL import Image

from jobs.report.blocks import Picture

LARGE = 96  # pixels: images of a longer side are shown smaller
EXACT = 48  # pixels: up to this side every pixel is as it is; larger images are compressed
GAP = 6
OUTLINE = (0, 162, 255)
FRAME_WIDTH = 3
_INFERNO = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in Inferno256], np.uint8)


def rgb(image_HWC: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of grey or colour."""
    return np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC


def heat(error_HW: np.ndarray, top: float) -> np.ndarray:
    """Errors as colours, uint8 (H, W, 3): black for 0, near white for `top` and above."""
    share = np.clip(error_HW / max(top, 1e-12), 0.0, 1.0)
    return _INFERNO[np.round(share * 255.0).astype(int)]


def smaller(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """At most `side` pixels long, in the same aspect; images are never enlarged."""
    height, width = image_HWC.shape[:2]
    share = side / max(height, width)
    if share >= 1.0:
        return image_HWC
    size = (max(1, round(width * share)), max(1, round(height * share)))
    flat = image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
    shrunk = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.LANCZOS))
    return shrunk.reshape(size[1], size[0], -1)


def enlarged(image_HWC: np.ndarray, times: int) -> np.ndarray:
    """Repeat each pixel, (H, W, C) to (H·times, W·times, C)."""
    return image_HWC.repeat(times, axis=0).repeat(times, axis=1)


def outlined(image_HW3: np.ndarray, y: int, x: int, side: int, times: int) -> np.ndarray:
    """Enlarged, with a frame around a patch that hides none of it; FRAME_WIDTH wider each way."""
    edge = FRAME_WIDTH
    shown = np.pad(enlarged(image_HW3, times), ((edge, edge), (edge, edge), (0, 0)))
    # Of the padded picture, so that a frame at the border is there, too.
    top, left, size = y * times, x * times, side * times + 2 * edge
    frame = np.zeros(shown.shape[:2], bool)
    frame[top : top + size, left : left + size] = True
    frame[top + edge : top + size - edge, left + edge : left + size - edge] = False
    shown[frame] = OUTLINE
    return shown


def beside(images: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Images beside each other, uint8 (H, W, 4), middles in line; nothing is in the gaps."""
    tall = max(image.shape[0] for image in images)
    parts: list[np.ndarray] = []
    for image in images:
        opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
        above = (tall - image.shape[0]) // 2
        below = tall - image.shape[0] - above
        before = gap if parts else 0
        solid = np.concatenate([rgb(image), opaque], axis=2)
        parts.append(np.pad(solid, ((above, below), (before, 0), (0, 0))))
    return np.concatenate(parts, axis=1)


def is_lossy(image_HWC: np.ndarray) -> bool:
    """Whether an image is large enough that nobody counts its pixels."""
    return max(image_HWC.shape[:2]) > EXACT


def data_uri(image_HWC: np.ndarray, *, lossy: bool) -> str:
    """lossy: WebP; else PNG."""
    buffer = io.BytesIO()
    flat = image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC
    picture = Image.fromarray(np.ascontiguousarray(flat))
    kind = "webp" if lossy else "png"
    picture.save(buffer, format=kind, **({"quality": 80} if lossy else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def cell(image_HWC: np.ndarray, alt: str, side: int, caption: str = "") -> Picture:
    """One image, `side` CSS pixels wide; small ones pixel by pixel."""
    small = smaller(image_HWC, LARGE)
    lossy = is_lossy(image_HWC)
    height = round(side * small.shape[0] / small.shape[1])
    return Picture(data_uri(small, lossy=lossy), alt, side, height, caption, pixelated=not lossy)


def strip(
    images: Sequence[np.ndarray], alt: str, caption: str = "", facts: Sequence[tuple[str, str]] = ()
) -> Picture:
    """Images beside each other as one picture, drawn as large as a cell of about 90 pixels."""
    shown = [smaller(image, LARGE) for image in images]
    times = max(1, 84 // max(shown[0].shape[:2]))
    whole = beside([enlarged(image, times) for image in shown])
    height, width = whole.shape[:2]
    uri = data_uri(whole, lossy=is_lossy(images[0]))
    return Picture(uri, alt, width, height, caption, facts, pixelated=False)

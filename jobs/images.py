"""From encoded bytes to staged pixels. A change of what comes out raises schema.PREPROCESSING."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # of one source image; a larger one is refused from its header
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels

# Ours is the bound; Pillow's own warning would only repeat it.
Image.MAX_IMAGE_PIXELS = None


class Refused(Exception):
    """An image that cannot be staged, with its reason code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Staged(NamedTuple):
    pixels_HWC: np.ndarray  # uint8
    source_width: int
    source_height: int


def decode(data: bytes | None, image_shape: tuple[int, int, int]) -> Staged:
    """Decodes, turns upright, crops to the aspect and resizes (bicubic, antialiased).

    Raises Refused with a reason: no_bytes, zero_bytes, not_an_image, too_many_pixels, truncated,
    decode_error.
    """
    if data is None:
        raise Refused("no_bytes", "the row has no image bytes")
    if not data:
        raise Refused("zero_bytes", "the image has zero bytes")
    height, width, channels = image_shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data)
        source_width, source_height = image.size
        if source_width * source_height > MAX_PIXELS:
            raise Refused(
                "too_many_pixels", f"{source_width}x{source_height}, the bound is {MAX_PIXELS}"
            )
        _load(image)
        try:
            flat = _flatten(ImageOps.exif_transpose(image), channels)
            if flat.size != (width, height):
                flat = ImageOps.fit(flat, (width, height), Image.Resampling.BICUBIC)
        except (ValueError, OSError) as error:
            raise Refused("decode_error", _told(error)) from error
    pixels = np.asarray(flat, dtype=np.uint8).reshape(image_shape)
    return Staged(pixels, source_width, source_height)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise Refused("not_an_image", "no known image format") from error
    except Exception as error:
        # Decoders of foreign bytes fail in many ways; all of them are this row's refusal.
        raise _refusal(error) from error


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> Refused:
    text = _told(error)
    cut = any(word in text.lower() for word in ("truncated", "end of file", "unexpected end"))
    return Refused("truncated" if cut else "decode_error", text)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """Grey or RGB, transparency composited on the background, 16 bits reduced to 8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image, dtype=np.uint32)
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8), mode="L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(background, rgba)
    return image.convert("L" if channels == 1 else "RGB")


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    """PNG bytes of one uint8 image with 1 or 3 channels."""
    array = pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="png", compress_level=3)
    return buffer.getvalue()

"""From encoded bytes to staged pixels. A change of what comes out raises schema.PREPROCESSING.

JPEG is decoded by libjpeg-turbo straight to a reduced size where the target is much smaller: its
inverse DCT of fewer coefficients is a low-pass of its own. The rest of the way, and every other
format, goes through an antialiased resize of whole pixels. Both are integer arithmetic, the same
on every machine.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from jobs.errors import RejectedInput
from jobs.imaging.pixel_arrays import Pixels
from jobs.imaging.target import Target

JPEG = b"\xff\xd8\xff"
ORIENTATION = 0x0112
# Others call programs (EPS: Ghostscript) or unpack without a bound.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
# Orientation tag by the turns and the mirroring that set the picture upright.
TRANSPOSED = frozenset((5, 6, 7, 8))

# A decoded picture takes as many bytes a pixel of `max_pixels` at most: RGB and RGBA of 8 bits do.
BYTES_A_PIXEL = 4
COEFFICIENT_BYTES = 2  # of progressive JPEG, which is decoded whole, whatever size is decoded to
MOST_SCANS = 100  # of it: each goes through all of the picture again; encoders make about ten
BAND_PIXELS = 1 << 22  # that are flattened at a time
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF's tags

# Ours is the bound; Pillow's own warning would only repeat it.
Image.MAX_IMAGE_PIXELS = None


class Staged(NamedTuple):
    """What became of one image. source_*: as it came, upright."""

    pixels_HWC: np.ndarray  # uint8
    source_width: int
    source_height: int
    source_format: str
    source_mode: str


def decode(data: bytes | Pixels | None, target: Target) -> Staged:
    """Decode, turn upright, flatten and resize. Of an animation, the first frame.

    Raises RejectedInput with a reason: no_bytes, zero_bytes, not_an_image, too_many_pixels,
    unsupported_mode, truncated, decode_error.
    """
    if data is None:
        raise RejectedInput("no_bytes", "the row has no image bytes")
    if isinstance(data, Pixels):
        height, width = data.array.shape[:2]
        _require_few_pixels(width, height, target, -(-data.array.nbytes // max(1, width * height)))
        image = _from_array(data.array)
        return _staged(image, target, image.size, "array", image.mode)
    if not data:
        raise RejectedInput("zero_bytes", "the image has zero bytes")
    if data.startswith(JPEG):
        staged = _decode_jpeg(data, target)
        if staged is not None:
            return staged
    return _decode_any(data, target)


def _decode_jpeg(data: bytes, target: Target) -> Staged | None:
    """None where libjpeg-turbo has a complaint or a mode that Pillow shall judge."""
    try:
        high, wide, colourspace, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(high), int(wide)
        if colourspace not in ("YCbCr", "Gray", "RGB"):
            return None
        _require_few_pixels(width, height, target, _coefficient_bytes(data) or 1)
        orientation = _orientation(data)
        upright = (height, width) if orientation in TRANSPOSED else (width, height)
        needed = upright if target.exact else _needed(*upright, target)
        if orientation in TRANSPOSED:
            needed = needed[::-1]
        grey = target.image_shape[2] == 1 or colourspace == "Gray"
        array = simplejpeg.decode_jpeg(
            data, "GRAY" if grey else "RGB", min_width=needed[0], min_height=needed[1]
        )
    except ValueError:
        return None
    mode = "L" if colourspace == "Gray" else "RGB"
    if array.shape == target.image_shape and orientation == 1 and _same_aspect(upright, target):
        return Staged(array, *upright, "JPEG", mode)  # as libjpeg reduced it
    image = _turned(Image.fromarray(array[:, :, 0] if grey else array), orientation)
    return _staged(image, target, upright, "JPEG", mode, _eighths(upright, image.size))


def _same_aspect(size: tuple[int, int], target: Target) -> bool:
    return size[0] * target.image_shape[0] == size[1] * target.image_shape[1]


def _eighths(size: tuple[int, int], decoded: tuple[int, int]) -> float:
    """Return the share of the full size that libjpeg decoded to: it rounds what is left over up."""
    for eighths in range(1, 8):
        if decoded == tuple(math.ceil(side * eighths / 8) for side in size):
            return eighths / 8
    return 1.0


def _orientation(data: bytes) -> int:
    if not _has_exif(data):
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(Image.open(io.BytesIO(data)).getexif().get(ORIENTATION, 1))
        except Exception as error:
            # Foreign metadata fails in many ways; the picture itself may still be good.
            raise ValueError("unreadable EXIF") from error


def _has_exif(data: bytes) -> bool:
    return any(
        marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0" for marker, at in _segments(data)
    )


def _coefficient_bytes(data: bytes) -> int:
    """Of a pixel of progressive JPEG; 0 of any other.

    Raises RejectedInput where it has more scans than any encoder makes.
    """
    frame = next((at for marker, at in _segments(data) if marker in (0xC2, 0xC6, 0xCA)), None)
    if frame is None:
        return 0
    scans = data.count(b"\xff\xda")
    if scans > MOST_SCANS:
        raise RejectedInput("decode_error", f"{scans} scans; at most {MOST_SCANS} are decoded")
    sampled = data[frame + 11 : frame + 11 + 3 * data[frame + 9] : 3]  # across and down, each
    blocks = [(each >> 4) * (each & 15) for each in sampled]
    return math.ceil(COEFFICIENT_BYTES * sum(blocks) / max(1, *blocks)) if blocks else 0


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of the segments before the picture; libjpeg has judged them already."""
    at = data.find(b"\xff", 2)  # decoders pass over what is between segments
    while at > 0 and at + 10 <= len(data):
        marker = data[at + 1]
        if marker == 0xDA:  # the picture begins
            return
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9  # without a length
        if not alone:
            yield marker, at
        step = (1 if marker == 0xFF else 2) + (
            0 if alone else max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        )
        at = data.find(b"\xff", at + step)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _decode_any(data: bytes, target: Target) -> Staged:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data)
        _require_few_pixels(*image.size, target, _decoded_bytes(image))
        _require_few_pixels(*_tile(image), target, _decoded_bytes(image))
        if data.startswith(JPEG):
            _require_few_pixels(*image.size, target, _coefficient_bytes(data))
        source_format, mode = image.format or "unknown", image.mode
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # else it is a copy, whatever is turned
            return _staged(image, target, image.size, source_format, mode)
        except RejectedInput:
            raise
        except Exception as error:
            # Decoders of foreign bytes fail in many ways; all of them are this row's refusal.
            raise _refusal(error) from error


def _require_few_pixels(width: int, height: int, target: Target, bytes_each: int) -> None:
    """bytes_each: that a decoder holds of a pixel."""
    most = target.max_pixels
    if width * height > most:
        raise RejectedInput("too_many_pixels", f"{width}x{height}, the bound is {most}")
    if width * height * bytes_each > most * BYTES_A_PIXEL:
        message = f"{width}x{height} of {bytes_each} bytes, the bound is {most} of {BYTES_A_PIXEL}"
        raise RejectedInput("too_many_pixels", message)


def _tile(image: Image.Image) -> tuple[int, int]:
    """Return what is decoded at once, whatever the size of the picture: TIFF says it by itself."""
    tags = getattr(image, "tag_v2", {})
    try:
        return int(tags.get(TILE_WIDTH, 0)), int(tags.get(TILE_LENGTH, 0))
    except (TypeError, ValueError) as error:
        raise RejectedInput("decode_error", f"tiles of no size: {error}") from error


def _decoded_bytes(image: Image.Image) -> int:
    """Of a pixel as its decoder has it, from the header."""
    tiles = getattr(image, "tile", None)  # of those that are read from files
    raw = str(tiles[0].args) if tiles else ""
    wide = {"I;16": 2, "I;16B": 2, "I;16L": 2, "I": 4, "F": 4}.get(image.mode, 1)
    return len(image.getbands()) * max(wide, 2 if ";16" in raw else 1)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise RejectedInput("not_an_image", "no known image format") from error
    except Exception as error:
        # As above: whatever a decoder raises is about this image.
        raise _refusal(error) from error


def _refusal(error: Exception) -> RejectedInput:
    text = f"{type(error).__name__}: {error}"[:300]
    cut = any(word in text.lower() for word in ("truncated", "end of file", "unexpected end"))
    return RejectedInput("truncated" if cut else "decode_error", text)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _staged(
    image: Image.Image,
    target: Target,
    size: tuple[int, int],
    source_format: str,
    mode: str,
    scale: float = 1.0,
) -> Staged:
    """size: width and height as they came; `image` may have been decoded at `scale` of it."""
    flat = _flatten(image, target)
    fitted = _fitted(flat, size, scale, target)
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(target.image_shape)
    return Staged(pixels, size[0], size[1], source_format, mode)


def _flatten(image: Image.Image, target: Target) -> Image.Image:
    """Grey or RGB, transparency composited on the background, 16 bits reduced to 8."""
    if image.mode == "F":
        raise RejectedInput("unsupported_mode", "floating-point pixels have no stated range")
    wanted = "L" if target.image_shape[2] == 1 else "RGB"
    if image.mode.startswith("I") or image.has_transparency_data:
        # Band by band: each step makes another picture of it.
        flat = Image.new(wanted, image.size)
        rows = max(1, BAND_PIXELS // image.width)
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            flat.paste(_flat_band(band, target).convert(wanted), (0, top))
        return flat
    return image.convert(wanted)


def _flat_band(image: Image.Image, target: Target) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.dtype != np.uint16:
            wide = wide.clip(0, 65535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (*target.background, 255))
        image = Image.alpha_composite(background, rgba)
    return image


def _inner(width: int, height: int, target: Target) -> tuple[int, int]:
    """Width and height that the picture takes up in the target."""
    high, wide = target.image_shape[:2]
    if target.fit != "pad":
        return wide, high
    scale = min(wide / width, high / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _needed(width: int, height: int, target: Target) -> tuple[int, int]:
    """Return the least size to decode at, so that no step enlarges what the file has more of."""
    wide, high = _inner(width, height, target)
    return min(wide, width), min(high, height)


def _fitted(image: Image.Image, size: tuple[int, int], scale: float, target: Target) -> Image.Image:
    wide, high = _inner(*size, target)
    # In the decoded picture's own pixels, of which the last may be a part only.
    left, top, right, bottom = 0.0, 0.0, size[0] * scale, size[1] * scale
    if target.fit == "crop":
        # The middle, of the target's aspect.
        keep = min(right * high, bottom * wide)
        left, top = (right - keep / high) / 2, (bottom - keep / wide) / 2
        right, bottom = left + keep / high, top + keep / wide
    whole = (left, top, right, bottom) == (0, 0, image.width, image.height)
    if not whole or image.size != (wide, high):
        shrinks = right - left > wide or bottom - top > high
        method = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
        box = (left, top, min(right, image.width), min(bottom, image.height))
        image = image.resize((wide, high), method, box)
    return _padded(image, target)


def _padded(image: Image.Image, target: Target) -> Image.Image:
    height, width, channels = target.image_shape
    if image.size == (width, height):
        return image
    red, green, blue = target.background
    fill = round(0.299 * red + 0.587 * green + 0.114 * blue) if channels == 1 else target.background
    canvas = Image.new(image.mode, (width, height), fill)
    canvas.paste(image, (math.floor((width - image.width) / 2), (height - image.height) // 2))
    return canvas


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    """PNG bytes of one uint8 image with 1 or 3 channels."""
    array = pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="png", compress_level=3)
    return buffer.getvalue()

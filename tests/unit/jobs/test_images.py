from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from jobs.images import MAX_PIXELS, Refused, decode, encode_png
from jobs.schema import PREPROCESSING
from tests.helpers import image_bytes


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    x = np.linspace(0, 255, size[0])[None, :, None]
    y = np.linspace(0, 255, size[1])[:, None, None]
    rgb = np.concatenate(np.broadcast_arrays(x, y, (x + y) / 2), axis=2).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def test_golden_pixels() -> None:
    """A change here changes staged data: raise PREPROCESSING and write the hash anew."""
    pixels = b"".join(
        decode(data, shape).pixels_HWC.tobytes()
        for data, shape in (
            (image_bytes([0])[0], (28, 28, 1)),
            (image_bytes([1])[0], (16, 20, 3)),
            (encoded(gradient()), (16, 16, 3)),
            (encoded(gradient("RGBA")), (64, 48, 1)),
            (encoded(gradient("CMYK"), "jpeg", quality=100), (24, 24, 3)),
        )
    )
    found = (PREPROCESSING, hashlib.sha256(pixels).hexdigest()[:16])
    assert found == (1, "3341e83ca9855047")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_colour_of_the_asked_size(mode: str, channels: int) -> None:
    if mode.startswith("I"):
        kind = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(np.full((30, 40), 0x8000, kind))
    else:
        image = gradient(mode)
    staged = decode(encoded(image, "tiff" if mode == "I" else "png"), (20, 24, channels))
    assert staged.pixels_HWC.shape == (20, 24, channels)
    assert staged.pixels_HWC.dtype == np.uint8
    assert (staged.source_width, staged.source_height) == (40, 30)
    if mode.startswith("I"):
        assert np.all(staged.pixels_HWC == 0x80)


def test_an_image_of_the_staged_size_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode(encode_png(pixels), (9, 7, 3)).pixels_HWC, pixels)


def test_what_is_transparent_shows_the_background() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert np.all(decode(encoded(clear), (4, 4, 3)).pixels_HWC == 255)


def test_an_upright_image_is_staged_however_the_camera_was_held() -> None:
    upright = gradient(size=(32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer must turn it a quarter clockwise
    turned = encoded(upright.rotate(90, expand=True), "png", exif=exif)
    plain = decode(encoded(upright), (32, 32, 3)).pixels_HWC
    assert np.array_equal(decode(turned, (32, 32, 3)).pixels_HWC, plain)


def test_resizing_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile([[0, 255]], (64, 32)).astype(np.uint8))
    small = decode(encoded(stripes), (16, 16, 1)).pixels_HWC
    assert abs(float(small.mean()) - 127.5) < 3
    assert small.std() < 10  # without antialiasing a stripe would survive whole


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no_bytes"),
        (b"", "zero_bytes"),
        (b"not an image at all", "not_an_image"),
        (encoded(gradient())[:100], "truncated"),
        (encoded(gradient(), "jpeg")[:300], "truncated"),
        (encoded(gradient())[:20], "truncated"),
    ],
)
def test_a_bad_image_is_refused_with_its_reason(data: bytes | None, reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        decode(data, (8, 8, 1))
    assert refusal.value.reason == reason
    assert refusal.value.message


def test_a_bomb_is_refused_by_its_header() -> None:
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))
    with pytest.raises(Refused, match=str(MAX_PIXELS)) as refusal:
        decode(bomb, (8, 8, 1))
    assert refusal.value.reason == "too_many_pixels"

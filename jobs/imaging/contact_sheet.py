"""One picture (PNG) of images in captioned rows."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 84
GAP = 6
MARGIN = 16
CAPTION = 30
TITLE = 30
INK, FAINT, PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Row:
    """A titled row of images; captions, one an image, may be empty."""

    title: str
    images: list[np.ndarray]  # uint8 (H, W, C), C 1 or 3
    captions: list[str]


def contact_sheet(heading: str, rows: list[Row]) -> bytes:
    """PNG bytes. Images are enlarged by pixel repetition, so that nothing is smoothed away."""
    columns = max(len(row.images) for row in rows)
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    heights = [
        (TITLE if row.title else 0) + CELL + (CAPTION if any(row.captions) else 0) + GAP
        for row in rows
    ]
    sheet = Image.new("RGB", (width, 2 * MARGIN + 34 + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), heading, fill=INK, font=ImageFont.load_default(18))
    top = MARGIN + 34
    for row, height in zip(rows, heights, strict=True):
        _draw_row(sheet, draw, row, top)
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, format="png")
    return buffer.getvalue()


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    draw.text((MARGIN, top + 8), row.title, fill=FAINT, font=ImageFont.load_default(13))
    font = ImageFont.load_default(11)
    below = top + (TITLE if row.title else 0)
    captions = row.captions or [""] * len(row.images)
    for index, (image, caption) in enumerate(zip(row.images, captions, strict=True)):
        left = MARGIN + index * (CELL + GAP)
        flat = image[:, :, 0] if image.shape[2] == 1 else image
        cell = Image.fromarray(np.ascontiguousarray(flat)).convert("RGB")
        sheet.paste(cell.resize((CELL, CELL), Image.Resampling.NEAREST), (left, below))
        draw.text((left, below + CELL + 2), caption, fill=INK, font=font)

"""The images of a query's rows as one picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.errors import InputError
from jobs.imaging.contact_sheet import Row, contact_sheet
from jobs.lake.paths import LakePaths
from jobs.query.staged_images import staged_images

log = logging.getLogger("latentlake")

COLUMNS = 10
MOST = 200  # images a picture


def draw_grid(lake: LakePaths, table: pa.Table, path: str) -> None:
    """Write a PNG of the images of column image_id, in order, with what the row says of each.

    Of pairs (other_id), both. Raises InputError where the rows name no images, or the file cannot
    be written.
    """
    if "image_id" not in table.column_names:
        raise InputError("--grid draws rows with a column image_id; select it")
    if not table.num_rows:
        log.warning("there are no rows to draw: %s is not written", path)
        return
    png = grid(lake, table.slice(0, MOST).to_pylist())
    if png is None:
        raise InputError("--grid: none of the rows' image_id is that of a staged image")
    try:
        Path(path).write_bytes(png)
    except OSError as error:
        raise InputError(f"--grid {path}: {error.strerror}") from error


def grid(lake: LakePaths, rows: Sequence[dict[str, Any]]) -> bytes | None:
    """Return the PNG of rows that have an image_id; None where no image is staged."""
    cells = [cell for row in rows for cell in _cells(row)]
    pictures = staged_images(lake, sorted({str(image_id) for image_id, _ in cells if image_id}))
    known = [(pictures[image_id], caption) for image_id, caption in cells if image_id in pictures]
    if not known:
        return None
    images, captions = [image for image, _ in known], [caption for _, caption in known]
    parts = [
        Row("", images[at : at + COLUMNS], captions[at : at + COLUMNS])
        for at in range(0, len(images), COLUMNS)
    ]
    return contact_sheet(f"{len(images)} images", parts)


def _cells(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Image ids and captions: the first number of the row, and its label."""
    number = next((v for v in row.values() if isinstance(v, float)), None)
    texts = ["" if number is None else f"{number:.4g}"]
    texts += [str(row["label"])] if row.get("label") is not None else []
    caption = "\n".join(texts)
    pair = [(row["other_id"], "")] if row.get("other_id") else []
    return [(row["image_id"], caption), *pair]

"""The pictures of a report as PNG, for pages that take no HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jobs.imaging.contact_sheet import Row, contact_sheet
from jobs.report.blocks import number
from jobs.report.data_uris import heat, smaller
from jobs.report.night import ReportNight
from jobs.report.sections.anomalies import SHOWN
from jobs.report.sections.data import sheet_images
from jobs.report.sections.reconstructions import USUAL

if TYPE_CHECKING:
    from jobs.report.model_pictures import Compared, Paintings

COLUMNS = 12
SIDE = 128  # larger images are drawn from a smaller copy


def sheets(night: ReportNight, paintings: Paintings | None) -> dict[str, bytes]:
    """By name: images, reconstructions, samples, traversals, anomalies; those that there are."""
    found: dict[str, bytes] = {}
    title, images = sheet_images(night)
    if images:
        parts = [images[at : at + COLUMNS] for at in range(0, len(images), COLUMNS)]
        rows = [_row("", part) for part in parts]
        found["images"] = contact_sheet(f"{night.dataset}, {night.night}: {title}", rows)
    if paintings is None:
        return found
    name = night.name
    found["reconstructions"] = contact_sheet(name, _compared(paintings.usual, paintings.top, USUAL))
    samples = [paintings.samples[:COLUMNS], paintings.samples[COLUMNS : 2 * COLUMNS]]
    found["samples"] = contact_sheet(f"{name}: samples", [_row("", s) for s in samples if s])
    found["traversals"] = contact_sheet(
        f"{name}: latent traversals",
        [_row(f"dimension {t.dimension}", t.frames) for t in paintings.traversals],
    )
    if paintings.flagged.ids:
        rows = _compared(paintings.flagged, paintings.top, SHOWN)
        q_values = {row["image_id"]: row["q_value"] for row in night.anomalies(SHOWN)}
        captions = [f"q = {number(q_values[i], 2)}" for i in paintings.flagged.ids]
        rows[0] = Row(rows[0].title, rows[0].images, captions)
        doubt = "" if night.calibration_is_valid else " (calibration NOT valid)"
        found["anomalies"] = contact_sheet(f"{name}: anomalies of {night.night}{doubt}", rows)
    return found


def _compared(compared: Compared, top: float, most: int) -> list[Row]:
    errors = [heat(error, top) for error in compared.errors_NHW[:most]]
    return [
        _row("images", compared.images[:most]),
        _row("their reconstructions", compared.reconstructions[:most]),
        _row("squared error", errors),
    ]


def _row(title: str, images: list[np.ndarray]) -> Row:
    return Row(title, [smaller(image, SIDE) for image in images], [])

"""The night's anomalies with their evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jobs.report.blocks import (
    Block,
    Limits,
    Missing,
    Picture,
    Pictures,
    Rows,
    Say,
    Section,
    number,
    percent,
)
from jobs.report.data_uris import (
    LARGE,
    beside,
    data_uri,
    enlarged,
    heat,
    is_lossy,
    outlined,
    rgb,
    smaller,
)
from jobs.report.night import ReportNight, Row

if TYPE_CHECKING:
    from jobs.report.model_pictures import Paintings

SHOWN = 12
FRAME = 96  # pixels of a cell, about


def anomalies_section(night: ReportNight, paintings: Paintings | None, limits: Limits) -> Section:
    """Worst first. paintings: None where the model can make nothing of the images."""
    _ = night.name
    if not night.batches:
        raise Missing(f"{night.name} scored no image of {night.dataset} on this night.")
    blocks: list[Block] = [*_warning(night), _batches(night)]
    if not night.flagged:
        blocks.append(Say("No image was flagged on this night.", "good"))
        return Section("anomalies", "Anomalies", blocks)
    count = limits.of(SHOWN)
    rows = night.anomalies(SHOWN)[:count]
    drawn = _drawn(paintings)
    pictures = [_evidence(night, row, drawn.get(row["image_id"])) for row in rows]
    caption = (
        f"{len(rows)} of {night.flagged:,} flagged images, most certain first: original, "
        "reconstruction, error map with the worst patch in a blue frame"
    )
    blocks.append(Pictures(caption, pictures, "evidence"))
    return Section("anomalies", "Anomalies", blocks)


def _warning(night: ReportNight) -> list[Block]:
    if night.calibration_is_valid:
        return []
    why = f"{night.why_not_valid}{' (see Drift)' if night.drifted else ''}"
    text = f"Calibration not valid: {why}. The p-values and q-values below promise nothing."
    return [Say(text, "bad")]


def _batches(night: ReportNight) -> Rows:
    columns = ("batch", "scored", "flagged", "level", "calibration images", "fewest", "score")
    rows = [
        (
            row["batch"],
            number(row["tested"]),
            number(row["flagged"]),
            percent(row["alpha"]),
            number(row["calibration_images"]),
            number(row["fewest_flaggable"]),
            row["decision_score"],
        )
        for row in night.batches
    ]
    caption = (
        "What was compared with the calibration; level is the false-discovery rate, fewest the "
        "smallest number of images that can be flagged at it"
    )
    return Rows(caption, columns, rows)


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def _drawn(paintings: Paintings | None) -> dict[str, Drawn]:
    """Original, reconstruction and error map in colours, by image id."""
    if paintings is None:
        return {}
    found = paintings.flagged
    parts = zip(found.ids, found.images, found.reconstructions, found.errors_NHW, strict=True)
    return {i: (image, made, heat(error, paintings.top)) for i, image, made, error in parts}


def _evidence(night: ReportNight, row: Row, drawn: Drawn | None) -> Picture:
    facts = _facts(night, row)
    caption = f"{row['rank']}. {row['image_id'][:12]}"
    if drawn is None:
        return Picture("", "not drawn", 0, 0, caption, facts)
    whole = beside(cells_of(row, drawn))
    alt = f"Anomaly {caption}: original, reconstruction, error map{_place(row)}"
    height, width = whole.shape[:2]
    uri = data_uri(whole, lossy=is_lossy(drawn[0]))
    return Picture(uri, alt, width, height, caption, facts, pixelated=False)


def cells_of(row: Row, drawn: Drawn) -> list[np.ndarray]:
    """Return the three pictures in one size, the worst patch framed."""
    image, made, error = drawn
    times = max(1, round(FRAME / max(image.shape[:2])))
    cells = [enlarged(rgb(image), times), enlarged(rgb(made), times)]
    if row["max_patch_y"] is None:
        cells.append(enlarged(error, times))
    else:
        place = (row["max_patch_y"], row["max_patch_x"], row["max_patch_side"])
        cells.append(outlined(error, *place, times))
    return [smaller(each, 2 * LARGE) for each in cells]


def _place(row: Row) -> str:
    if row["max_patch_y"] is None:
        return ""
    side = row["max_patch_side"]
    return (
        f"; the worst patch is {side}×{side} at row {row['max_patch_y']}, column "
        f"{row['max_patch_x']}"
    )


def _facts(night: ReportNight, row: Row) -> Sequence[tuple[str, str]]:
    score = row["decision_score"]
    facts = [
        (score, number(row[score])),
        ("p-value", number(row["p_value"], 2)),
        ("q-value", number(row["q_value"], 2)),
    ]
    if not night.calibration_is_valid:
        facts.append(("calibration", "NOT VALID"))
    if row["label"] is not None:
        facts.append(("label", row["label"]))
    if row["latents"]:
        pairs = zip(row["latents"], row["latent_kl"], strict=True)
        dimensions = ", ".join(f"{d} ({number(kl, 2)})" for d, kl in pairs)
        facts.append(("latent dimensions (KL, nats)", dimensions))
    if row["max_patch_y"] is not None:
        facts.append(("worst patch", f"row {row['max_patch_y']}, column {row['max_patch_x']}"))
    member = f", {row['source_member']}" if row["source_member"] else ""
    where = "left the dataset since"
    if row["source_uri"] is not None:
        where = f"{row['source_uri']}{member}, row {row['source_row']}"
    facts.append(("source", where))
    return facts

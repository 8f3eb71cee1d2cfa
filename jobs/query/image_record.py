"""What a lake knows of one image: its row, what a model made of it, and its pictures."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from jobs.query.api import Embeddings, Lake
from jobs.query.nights import nights

WIDE = ("image", "embedding", "embedding_log_var")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """staged and scored: rows by column, without pixels and embedding; empty where there is none.

    pixels_HWC, reconstruction_HWC: uint8; None where it is not staged, or none was kept.
    doubt: why its p-value is not valid; empty where nothing speaks against it.
    """

    image_id: str
    staged: dict[str, Any]
    scored: dict[str, Any]
    pixels_HWC: np.ndarray | None
    reconstruction_HWC: np.ndarray | None
    doubt: str = ""


def evidence(lake: Lake, image_id: str, model: Embeddings | None) -> Evidence:
    """model: None where nothing has been embedded yet."""
    wide = f"EXCLUDE ({', '.join(WIDE[1:])})"
    staged = _first(lake, "SELECT * EXCLUDE (image) FROM images WHERE image_id = ?", [image_id])
    scored, png, doubt = {}, None, ""
    if model is not None:
        of = "WHERE image_id = ? AND model = ? AND model_version = ?"
        params = [image_id, model.model, model.version]
        scored = _first(lake, f"SELECT * {wide} FROM embeddings {of}", params)
        png = _first(lake, f"SELECT png FROM reconstructions {of}", params).get("png")
        doubt = _doubt(scored, model)
    pixels = lake.pictures([image_id]).get(image_id)
    return Evidence(image_id, staged, scored, pixels, _decoded(png), doubt)


def _doubt(scored: dict[str, Any], model: Embeddings) -> str:
    if scored.get("p_value") is None:
        return ""
    of_its_night = [night.why for night in nights(model) if night.night == scored["night"]]
    found = "".join(of_its_night)
    if not found and scored.get("calibration_valid") is False:
        return "drift was found, or scores and calibration were computed differently"
    return found


def _first(lake: Lake, statement: str, params: list[str]) -> dict[str, Any]:
    rows = lake.sql(f"{statement} LIMIT 1", params).to_pylist()
    return rows[0] if rows else {}


def _decoded(png: bytes | None) -> np.ndarray | None:
    if png is None:
        return None
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]

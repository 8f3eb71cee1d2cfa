"""One image of `latentlake explore`, large, with all that is known of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel_material_ui as pmui

from flows.explore.state import ExploreState
from flows.explore.widgets import LARGE, Notice, PictureGrid, RowTable, Shown, data_uri
from jobs.errors import LatentlakeError
from jobs.query.image_record import Evidence, evidence

NEIGHBOURS = 12
FIRST = ("image_id", "dataset", "label", "split", "night", "source_uri", "source_row")


class ImageDialog:
    """Opened by whoever shows small pictures; its neighbours open in it."""

    def __init__(self, state: ExploreState) -> None:
        self.state = state
        self.model: str | None = None
        self.notice = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.pictures = Shown(sizing_mode="stretch_width")
        self.staged = RowTable(sizing_mode="stretch_width")
        self.scored = RowTable(sizing_mode="stretch_width")
        self.near_title = pmui.Typography("Nearest neighbours", variant="h6", margin=(10, 0))
        self.near = PictureGrid(sizing_mode="stretch_width", on_open=self.show)
        self.dialog = pmui.Dialog(
            self.notice,
            self.pictures,
            self.near_title,
            self.near,
            self.staged,
            self.scored,
            title="Image",
            show_close_button=True,
            close_on_click=True,
            width_option="md",
            sizing_mode="stretch_width",
            scroll="paper",
        )

    def open(self, image_id: str, model: str | None) -> None:
        """model: NAME@VERSION; None where nothing has been embedded."""
        self.model = model
        self.show(image_id)
        self.dialog.open = True

    def show(self, image_id: str) -> None:
        """Open the dialog on an image."""
        self.notice.say()
        try:
            of = self.state.embeddings(self.model) if self.model else None
            found = evidence(self.state.lake, image_id, of)
        except LatentlakeError as error:
            self.notice.say(str(error), "error")
            return
        self.pictures.items = _large(found)
        self.staged.fill(_facts(found.staged), caption="As it was staged")
        self.scored.fill(_facts(found.scored), caption=f"What {self.model} made of it")
        facts = []
        if found.scored and found.reconstruction_HWC is None:
            kept = "No reconstruction was kept of it: latentlake embed --reconstructions anomalies"
            facts.append(f"{kept} (or all) keeps them.")
        if found.doubt:
            facts.append(f"CALIBRATION NOT VALID: its p-value is not valid; {found.doubt}.")
        self.notice.say(" ".join(facts), "error" if found.doubt else "plain")
        self._show_neighbours(found)

    def _show_neighbours(self, found: Evidence) -> None:
        self.near_title.visible = bool(found.scored)
        if not found.scored or self.model is None:
            self.near.items = []
            return
        rows = (
            self.state.embeddings(self.model).neighbours(found.image_id, k=NEIGHBOURS).to_pylist()
        )
        pictures = self.state.lake.pictures([row["image_id"] for row in rows])
        self.near.fill(rows, pictures, near_lines)


def near_lines(row: dict[str, Any]) -> list[str]:
    """Below the picture of a neighbour."""
    label = [str(row["label"])] if row.get("label") is not None else []
    return [f"distance {row['cosine_distance']:.4f}", *label, row["dataset"]]


def _facts(row: dict[str, Any]) -> list[dict[str, Any]]:
    names = [*(n for n in FIRST if n in row), *(n for n in row if n not in FIRST)]
    # Spelled out, so that an id can be copied.
    whole = {n: row[n] if not isinstance(row[n], str) else f"{row[n]}" for n in names}
    return [{"what": name, "value ": value} for name, value in whole.items() if value is not None]


def _large(found: Evidence) -> list[dict[str, str]]:
    pictures = {"as staged": found.pixels_HWC, "reconstruction": found.reconstruction_HWC}
    if found.pixels_HWC is not None and found.reconstruction_HWC is not None:
        pictures["difference"] = _difference(found.pixels_HWC, found.reconstruction_HWC)
    return [
        {"src": data_uri(pixels, LARGE), "caption": name}
        for name, pixels in pictures.items()
        if pixels is not None
    ]


def _difference(a_HWC: np.ndarray, b_HWC: np.ndarray) -> np.ndarray:
    """Return |a − b|, uint8, the largest one white; in grey."""
    if a_HWC.shape[:2] != b_HWC.shape[:2]:
        return np.zeros_like(a_HWC)
    apart_HW = np.abs(a_HWC.astype(np.float32).mean(2) - b_HWC.astype(np.float32).mean(2))
    top = float(apart_HW.max())
    return (apart_HW * (255.0 / top if top else 0.0)).astype(np.uint8)[:, :, None]

"""The page "Search": the images nearest to one, uploaded or named."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

from flows.explore.image_dialog import ImageDialog, near_lines
from flows.explore.state import ExploreState
from flows.explore.widgets import Notice, PictureGrid, Shown, filters, number
from jobs.errors import InputError, LatentlakeError

MOST = 100  # neighbours on a page


class Search:
    """The tab of neighbours of an image, by id or by file."""

    def __init__(self, state: ExploreState, dialog: ImageDialog) -> None:
        self.state, self.dialog = state, dialog
        models = state.models()
        self.model = pmui.Select(label="Model", options=models)
        self.image_id = pmui.TextInput(
            label="Image id", placeholder="or a unique beginning of it", value=""
        )
        self.count = pmui.IntInput(label="How many", value=12, start=1, end=MOST)
        self.file = pmui.FileInput(label="Upload an image", accept="image/*")
        self.search = pmui.Button(label="Search by id", disabled=not models)
        self.notice = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.chosen = Shown(sizing_mode="stretch_width")
        self.pictures = PictureGrid(sizing_mode="stretch_width", on_open=self._open)
        self.file.param.watch(lambda event: self._by_file() if event.new else None, "value")
        self.search.on_click(lambda _: self._by_id())
        self.image_id.param.watch(lambda event: self._by_id() if event.new else None, "value")
        text = "Upload an image file, or name an image of the lake by its id: the images whose "
        text += "embeddings are nearest to it come up. The file stays in memory, nothing is kept."
        self.notice.say(text if models else "Nothing has been embedded yet: latentlake embed.")

    def view(self) -> list[pn.viewable.Viewable]:
        """Return what the tab shows."""
        chosen = filters(self.model, self.count, self.image_id, self.search, self.file)
        return [chosen, self.notice, self.chosen, self.pictures]

    def _open(self, image_id: str) -> None:
        self.dialog.open(image_id, self.model.value)

    def _by_id(self) -> None:
        given = (self.image_id.value or "").strip().lower()
        self.chosen.items = []
        if not given:
            self.notice.say("Give an image id, or upload a file.", "warning")
            return
        self._show(given, f"Nearest to image {given}, by cosine distance; it is not listed itself.")

    def _by_file(self) -> None:
        data, name = self.file.value, str(self.file.filename or "the file")
        self.chosen.items = []
        self.notice.say("Embedding it; the first time takes a few seconds …")
        try:
            found = self._embedded(name, data)
        except LatentlakeError as error:
            self.pictures.items = []
            self.notice.say(str(error), "error")
            return
        # The browser made the picture's type out; only its decoders see the bytes.
        uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
        self.chosen.items = [{"src": uri, "caption": name}]
        p, valid = found["p_value"], found["calibration_valid"]
        text = f"Nearest to {name}, by cosine distance."
        if p is not None:
            text += f" As a new image its p-value is {number(p)}"
            text += (
                "." if valid else ", not valid: it was computed differently from the calibration."
            )
        self._show(np.asarray(found["embedding"], np.float32), text)

    def _embedded(self, name: str, data: bytes) -> dict[str, Any]:
        from jobs.embed.score_files import embed_contents  # brings torch: only where it is needed

        if not self.model.value:
            raise InputError("nothing has been embedded yet: latentlake embed")
        return embed_contents(self.state.lake, self.model.value, [(name, data)])[0]

    def _show(self, of: str | np.ndarray, text: str) -> None:
        try:
            model = self.state.embeddings(self.model.value)
            rows = model.neighbours(of, k=self.count.value or 12).to_pylist()
            pictures = self.state.lake.pictures([row["image_id"] for row in rows])
        except LatentlakeError as error:
            self.pictures.items = []
            self.notice.say(str(error), "error")
            return
        self.notice.say(text)
        self.pictures.fill(rows, pictures, near_lines)

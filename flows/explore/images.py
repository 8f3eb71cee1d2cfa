"""The page "Images": a dataset's images, page by page."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from flows.explore.image_dialog import ImageDialog
from flows.explore.state import ExploreState
from flows.explore.widgets import Notice, PictureGrid, filters
from jobs.errors import LatentlakeError
from jobs.query.image_pages import ImagePages
from jobs.tables import catalog

PAGE = 48
ALL = "all"


class Images:
    """The tab of all images, page by page."""

    def __init__(self, state: ExploreState, dialog: ImageDialog) -> None:
        self.state, self.dialog = state, dialog
        datasets = catalog.datasets(state.lake)
        self.dataset = pmui.Select(label="Dataset", options=datasets)
        self.split = pmui.Select(label="Split", options=[ALL])
        self.night = pmui.Select(label="Night", options=[ALL])
        self.label = pmui.Select(label="Label", options=[ALL])
        self.pages = pmui.Pagination(count=1, value=0, sibling_count=0)
        self.jump = pmui.IntInput(label="Go to page", value=1, start=1)
        self.notice = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.pictures = PictureGrid(sizing_mode="stretch_width", on_open=self._open)
        self.dataset.param.watch(lambda _: self._list_choices(), "value")
        for choice in (self.split, self.night, self.label):
            choice.param.watch(lambda _: self._first(), "value")
        self.pages.param.watch(lambda _: self.update(), "value")
        self.jump.param.watch(lambda event: self._go(event.new), "value")
        self.listing = False
        if datasets:
            self._list_choices()
        else:
            self.notice.say("There are no datasets yet: latentlake stage.")

    def view(self) -> list[pn.viewable.Viewable]:
        """Return what the tab shows."""
        chosen = filters(self.dataset, self.split, self.night, self.label, self.jump)
        return [chosen, self.notice, self.pictures, self.pages]

    def _open(self, image_id: str) -> None:
        models = self.state.models()
        self.dialog.open(image_id, next(iter(models.values()), None))

    @property
    def chosen(self) -> ImagePages:
        """Return the pages that the choices say."""
        given = {
            name: None if choice.value == ALL else choice.value
            for name, choice in (
                ("split", self.split),
                ("night", self.night),
                ("label", self.label),
            )
        }
        return ImagePages(self.state.lake, self.dataset.value, **given)

    def _list_choices(self) -> None:
        of = ImagePages(self.state.lake, self.dataset.value)
        self.listing = True  # the filters change, and none of them is a question
        try:
            for name in ("split", "night", "label"):
                choice = getattr(self, name)
                choice.param.update(options=[ALL, *of.choices(name)], value=ALL)
            self.label.visible = len(self.label.options) > 1
        except LatentlakeError as error:
            self.notice.say(str(error), "error")
        finally:
            self.listing = False
        self._first()

    def _go(self, page: int | None) -> None:
        if page is not None:
            self.pages.value = min(max(page, 1), self.pages.count) - 1

    def _first(self) -> None:
        if self.listing:
            return
        if self.pages.value:
            self.pages.value = 0  # which updates
        else:
            self.update()

    def update(self) -> None:
        """Show the page."""
        try:
            pages = self.chosen
            count = pages.count()
            rows = pages.page(self.pages.value, PAGE).to_pylist()
            pictures = self.state.lake.pictures([row["image_id"] for row in rows])
        except LatentlakeError as error:
            self.notice.say(str(error), "error")
            return
        self.pages.count = max(1, -(-count // PAGE))
        self.jump.value = self.pages.value + 1
        first = self.pages.value * PAGE
        text = f"{first + 1:,} to {first + len(rows):,} of {count:,} images"
        self.notice.say(text if rows else "No image is like that.")
        self.pictures.fill(rows, pictures, _lines)


def _lines(row: dict[str, Any]) -> list[str]:
    label = [str(row["label"])] if row.get("label") is not None else []
    return [*label, row["split"], row["image_id"][:12]]

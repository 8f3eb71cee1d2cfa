"""The page "Overview": datasets, models with their aliases, and the last runs."""

from __future__ import annotations

import panel as pn
import panel_material_ui as pmui

from flows.explore.state import ExploreState
from flows.explore.widgets import Notice, RowTable
from flows.inventory import inventory
from jobs.errors import LatentlakeError

TITLES = {"datasets": "Datasets", "models": "Models", "runs": "Last runs"}
NONE = {
    "datasets": "No datasets yet: latentlake stage.",
    "models": "No models yet: latentlake train.",
    "runs": "No runs yet.",
}


class Overview:
    """The tab of what the lake holds."""

    def __init__(self, state: ExploreState) -> None:
        self.state = state
        self.refresh = pmui.Button(label="Read again", variant="outlined")
        self.notice = Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0))
        self.tables = {kind: RowTable(sizing_mode="stretch_width") for kind in TITLES}
        self.empty = {
            kind: Notice(sizing_mode="stretch_width", margin=(4, 0, 12, 0)) for kind in TITLES
        }
        self.refresh.on_click(lambda _: self.update())
        self.update()

    def view(self) -> list[pn.viewable.Viewable]:
        """Return what the tab shows."""
        parts = [part for kind in TITLES for part in (self.tables[kind], self.empty[kind])]
        return [self.notice, *parts, self.refresh]

    def update(self) -> None:
        """Read the lake anew."""
        try:
            found = inventory(self.state.lake)
        except LatentlakeError as error:
            self.notice.say(str(error), "error")
            return
        self.notice.say(f"Lake {found['lake']}")
        for kind, title in TITLES.items():
            rows = found[kind] if kind != "runs" else found[kind][::-1]
            self.tables[kind].fill(rows, caption=title)
            self.empty[kind].say("" if rows else NONE[kind])

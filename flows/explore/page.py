"""The page of `latentlake explore`: its five parts, made when they are looked at first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import JSComponent
from panel.viewable import Viewable

from flows.explore.anomalies import Anomalies
from flows.explore.image_dialog import ImageDialog
from flows.explore.images import Images
from flows.explore.overview import Overview
from flows.explore.search import Search
from flows.explore.sql import Sql
from flows.explore.state import ExploreState
from flows.explore.widgets import Notice

log = logging.getLogger("latentlake")

TITLE = "latentlake explore"
THREADS = 4
BAR = {"backgroundColor": "#00363d !important", "color": "#fff"}
COLOURS = {
    "light": {"palette": {"primary": {"main": "#00606b"}}},
    "dark": {
        "palette": {"primary": {"main": "#4dd0e1"}},
        "components": {"MuiAppBar": {"styleOverrides": {"root": BAR}}},
    },
}

# Five titles side by side on a telephone.
NARROW = {
    "& .MuiTab-root": {
        "textTransform": "none",
        "minWidth": 0,
        "fontSize": {"xs": 14, "sm": 16},
        "padding": {"xs": "12px 9px", "sm": "12px 20px"},
    }
}


class Prefers(JSComponent):
    """Whether the browser asks for dark pages."""

    dark = param.Boolean(default=False)

    _esm = """
export function render({model}) {
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  model.dark = dark.matches;
  dark.addEventListener('change', () => { model.dark = dark.matches; });
  return document.createElement('span');
}"""


def prepare() -> None:
    """Once a process, before the first page."""
    pn.extension(nthreads=THREADS)


def page(state: ExploreState) -> Callable[[], pmui.Page]:
    """Return what makes the page of a session."""
    return lambda: _page(state)


def _page(state: ExploreState) -> pmui.Page:
    dialog = ImageDialog(state)
    makers = {
        "Anomalies": lambda: Anomalies(state, dialog).view(),
        "Search": lambda: Search(state, dialog).view(),
        "Images": lambda: Images(state, dialog).view(),
        "SQL": lambda: Sql(state, dialog).view(),
        "Overview": lambda: Overview(state).view(),
    }
    parts = {name: pmui.Column(sizing_mode="stretch_width", margin=(12, 16)) for name in makers}
    # Not dynamic: what a thread puts into a part while the library makes its model would be lost.
    tabs = pmui.Tabs(*parts.items(), sizing_mode="stretch_width", sx=NARROW)
    one_at_a_time = threading.Lock()

    def fill(*_: param.parameterized.Event) -> None:
        name = list(parts)[tabs.active]
        with one_at_a_time:
            if not parts[name].objects:
                parts[name].extend(contents(name, makers[name]))

    location = pn.state.location
    if location is not None:
        location.sync(tabs, {"active": "tab"})
    tabs.param.watch(fill, "active")
    pn.state.onload(fill, threaded=True)  # the server answers others meanwhile
    prefers = Prefers(width=0, height=0, margin=0)
    made = pmui.Page(
        title=TITLE,
        main=[tabs, dialog.dialog, prefers],
        theme_config=COLOURS,
        main_width={"lg": 1280},
    )
    prefers.jslink(made, dark="dark_theme")
    return made


def contents(name: str, maker: Callable[[], list[Viewable]]) -> list[Viewable]:
    """Return a part's contents, or what went wrong: an empty page says nothing to anybody."""
    try:
        return maker()
    except Exception as error:
        log.exception("explore: the page %s could not be made", name)
        notice = Notice(sizing_mode="stretch_width")
        notice.say(f"This page could not be made ({error}); its log says more.", "error")
        return [notice]

"""The charts of a report, drawn by Bokeh.

Colours of lines and points can be read on light and on dark paper; those of axes, grids and text
come from the page's style sheet, which knows which of the two it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    ColumnDataSource,
    HoverTool,
    Legend,
    Span,
    WheelZoomTool,
)
from bokeh.palettes import Category10
from bokeh.plotting import figure
from bokeh.resources import Resources

# Red is what is flagged.
FLAGGED = "#e3170a"
COLOURS = tuple("#6b6ecf" if c == "#d62728" else c for c in Category10[10])
DASHES = ("solid", "dashed", "dotted", "dotdash")
MARKS = ("circle", "square", "triangle", "diamond")
# Legends are elements of the page, which Bokeh gives a colour of its own.
LEGEND_STYLE = ".bk-item .bk-label { color: var(--ink) !important; }"
TOOLS = "pan,wheel_zoom,reset"
POINT_TIP = """
<div style="display:flex;gap:10px;align-items:center;max-width:260px">
  <div style="flex:none;width:{width}px;height:{height}px;background-image:var(--sprites);
    background-size:{whole}px auto;background-position:@place;{pixelated}"></div>
  <div style="font:12px/1.4 system-ui,sans-serif;overflow-wrap:anywhere">
    <b>@image_id</b><br>@p_value<br>@label<br>@fate</div>
</div>
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """name: in the legend."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Points:
    """columns: x, y (float32) and texts of equal length: place, image_id, p_value, label, fate."""

    name: str
    columns: Mapping[str, Any]
    colour: str
    marker: str = "circle"
    size: int = 6
    alpha: float = 0.75


def library() -> str:
    """BokehJS with its core components only: no widgets, tables, WebGL or MathJax."""
    inline = Resources(mode="inline", components=["bokeh"], minified=True, log_level="error")
    return "\n".join(inline.js_raw)


_OBJECT_ID = re.compile(r"p\d+")


def embedded(name: str, chart: Any) -> str:
    """Return a figure as JSON for `Bokeh.embed.embed_item`, drawn into the element `chart-NAME`.

    Bokeh counts its objects through a whole process: they are numbered anew, so that the same
    figure is the same text.
    """
    numbers: dict[str, str] = {}
    made: dict[str, Any] = dict(json_item(chart, ID(f"chart-{name}")))
    # Of other libraries' models, where the process has loaded some: no chart uses them.
    made["doc"].pop("defs", None)
    item = _renumbered(made, numbers)
    item["root_id"] = numbers[item["root_id"]]
    return json.dumps(item, separators=(",", ":"))


def _renumbered(value: Any, numbers: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_renumbered(each, numbers) for each in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, each in value.items():
        if key == "id" and isinstance(each, str) and _OBJECT_ID.fullmatch(each):
            made[key] = numbers.setdefault(each, f"o{len(numbers)}")
        else:
            made[key] = _renumbered(each, numbers)
    return made


def _empty(x: str, y: str, height: int = 320, **more: Any) -> Any:
    made = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=TOOLS,
        x_axis_label=x,
        y_axis_label=y,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        output_backend="canvas",
        min_border_right=16,
        **more,
    )
    made.toolbar.logo = None
    made.toolbar.active_drag = None  # so that a finger on it moves the page
    return made


def _hover(made: Any, tips: list[tuple[str, str]], renderers: list[Any]) -> None:
    made.add_tools(HoverTool(tooltips=tips, renderers=renderers))


def _legend(made: Any, items: list[tuple[str, list[Any]]], columns: int = 2) -> None:
    """Below the plot, where it hides nothing; a click hides what it names."""
    legend = Legend(
        items=items,
        click_policy="hide",
        orientation="horizontal",
        location="bottom_left",
        ncols=columns,
        background_fill_color=None,
        border_line_color=None,
        stylesheets=[LEGEND_STYLE],
    )
    made.add_layout(legend, "below")


def lines_figure(x: str, y: str, lines: Sequence[Line], marked: float | None = None) -> Any:
    """Lines distinguished by colour, dash and marker. marked: an x to point out."""
    made = _empty(x, y)
    items, dots = [], []
    for index, line in enumerate(lines):
        source = ColumnDataSource({"x": line.xs, "y": line.ys, "name": [line.name] * len(line.xs)})
        colour, dash = COLOURS[index % 10], DASHES[index % 4]
        drawn = made.line("x", "y", source=source, color=colour, line_dash=dash, line_width=2)
        dot = made.scatter(
            "x", "y", source=source, color=colour, marker=MARKS[index % 4], size=6, alpha=0.9
        )
        items.append((line.name, [drawn, dot]))
        dots.append(dot)
    if marked is not None:
        made.add_layout(
            Span(location=marked, dimension="height", line_dash="dotted", line_color="#808080")
        )
    _hover(made, [("", "@name"), (x, "@x"), (y, "@y{0,0.00}")], dots)
    _legend(made, items)
    return made


def plane_figure(x: str, y: str, paths: Sequence[Line], ends: Sequence[Line]) -> Any:
    """Paths, each from its small first point to its large last one. ends: of one point each."""
    made = _empty(x, y, height=360)
    items, dots = [], []
    for index, (path, end) in enumerate(zip(paths, ends, strict=True)):
        colour, marker = COLOURS[index % 10], MARKS[index % 4]
        columns = {"x": path.xs, "y": path.ys, "epoch": list(range(1, len(path.xs) + 1))}
        way = ColumnDataSource(columns)
        line = made.line("x", "y", source=way, color=colour, line_width=1.5, alpha=0.7)
        small = made.scatter("x", "y", source=way, color=colour, size=4, alpha=0.7)
        source = ColumnDataSource({"x": end.xs, "y": end.ys, "epoch": ["published"] * len(end.xs)})
        large = made.scatter("x", "y", source=source, color=colour, size=13, marker=marker)
        items.append((path.name, [line, small, large]))
        dots += [small, large]
    _hover(made, [("epoch", "@epoch"), (x, "@x{0,0.0}"), (y, "@y{0,0.0}")], dots)
    _legend(made, items, columns=1)
    return made


def bars_figure(x: str, y: str, names: Sequence[str], values: Sequence[float]) -> Any:
    """Draw bars, one for each name."""
    made = _empty(x, y, height=260, x_range=list(names))
    source = ColumnDataSource({"name": list(names), "value": list(values)})
    bars = made.vbar("name", top="value", source=source, width=0.7, color=COLOURS[0])
    made.y_range.start = 0
    made.xgrid.visible = False
    if len(names) > 16:
        made.xaxis.major_label_text_font_size = "0px"  # they would lie over each other
    _hover(made, [(x, "@name"), (y, "@value{0,0.000}")], [bars])
    return made


def p_values_figure(
    nights: Sequence[str], p_values: Sequence[float], levels: Sequence[float]
) -> Any:
    """Return the combined p-value by night, and the level below which drift is reported, on a log
    axis."""
    least = min([*p_values, *levels])
    made = _empty(
        "night",
        "p-value (log)",
        height=280,
        x_range=list(nights),
        y_axis_type="log",
        y_range=(max(least, 1e-12) / 3, 1.5),
    )
    outcomes = ["drift" if p <= a else "no drift" for p, a in zip(p_values, levels, strict=True)]
    columns = {
        "night": list(nights),
        "p": list(p_values),
        "level": list(levels),
        "told": outcomes,
        "colour": [FLAGGED if each == "drift" else COLOURS[0] for each in outcomes],
        "mark": ["diamond" if each == "drift" else "circle" for each in outcomes],
    }
    source = ColumnDataSource(columns)
    level = made.line("night", "level", source=source, color="#808080", line_dash="dashed")
    dots = made.scatter("night", "p", source=source, color="colour", marker="mark", size=10)
    made.xaxis.major_label_orientation = math.pi / 4
    _hover(made, [("night", "@night"), ("p", "@p{0.00000}"), ("", "@told")], [dots])
    _legend(made, [("p-value of the night", [dots]), ("level of the night", [level])])
    return made


def map_figure(groups: Sequence[Points], sprite: tuple[int, int, int, bool]) -> Any:
    """Points on a plane, a picture of each under the pointer.

    sprite: width and height of one picture on the page, of the whole sheet of sprites, and
    whether pixels are shown as they are.
    """
    made = _empty("", "", height=560, match_aspect=False)
    made.toolbar.active_scroll = made.select_one(WheelZoomTool)
    made.axis.visible = False
    made.grid.visible = False
    items, drawn = [], []
    for group in groups:
        source = ColumnDataSource(dict(group.columns))
        flagged = group.marker != "circle"
        points = made.scatter(
            "x",
            "y",
            source=source,
            marker=group.marker,
            size=group.size,
            fill_color=group.colour if not flagged else None,
            line_color=group.colour,
            line_width=2 if flagged else 0,
            fill_alpha=group.alpha,
            hover_fill_color=group.colour,
            hover_line_color="#808080",
        )
        items.append((group.name, [points]))
        if not flagged:
            drawn.append(points)  # a flagged one lies around its point, whose picture is enough
    width, height, whole, pixelated = sprite
    tip = POINT_TIP.format(
        width=width,
        height=height,
        whole=whole,
        pixelated="image-rendering:pixelated" if pixelated else "",
    )
    made.add_tools(HoverTool(tooltips=tip, renderers=drawn, limit=1))
    _legend(made, items, columns=3)
    return made


def float32(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Half of the page that float64 takes."""
    return np.asarray(values, np.float32)

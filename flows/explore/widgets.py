"""What the pages of `latentlake explore` are made of: notices, tables and pictures.

Values come from data, so that they reach the page as text nodes and never as markup; the
library's own text widgets take HTML, and are given none but our own words.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import panel_material_ui as pmui
import param
from panel.custom import JSComponent
from panel.viewable import Viewable
from PIL import Image

from flows.output import ID_DIGITS, cell
from jobs.imaging.decode import encode_png

THUMBNAIL = 128  # pixels on a page, a side
LARGE = 768
LONGEST = 2000  # characters of a cell
LINE = "1px solid color-mix(in srgb, currentColor 22%, transparent)"
FONT = ":host { font: 14px/1.45 Roboto, system-ui, sans-serif; color: inherit; max-width: 100%; }"
NODE = """
const node = (kind, name, text) => {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
"""


class Notice(JSComponent):
    """One sentence; nothing where there is none. kind: good, plain, warning or error."""

    text = param.String()
    kind = param.Selector(default="plain", objects=["good", "plain", "warning", "error"])

    _esm = (
        NODE
        + """
export function render({model}) {
  const box = node('div');
  box.setAttribute('role', 'status');
  const draw = () => {
    box.className = `said ${model.kind}`;
    box.textContent = model.text;
  };
  model.on(['text', 'kind'], draw);
  draw();
  return box;
}"""
    )
    _stylesheets: ClassVar = [
        FONT,
        """
.said { padding: 10px 14px; border-radius: 6px; border-left: 5px solid #78909c;
          background: color-mix(in srgb, #78909c 14%, transparent); overflow-wrap: anywhere;
          white-space: pre-wrap; }
.good { border-color: #2e7d32; background: color-mix(in srgb, #2e7d32 14%, transparent); }
.warning { border-color: #ed6c02; background: color-mix(in srgb, #ed6c02 18%, transparent);
           font-weight: 600; }
.error { border-color: #d32f2f; background: color-mix(in srgb, #d32f2f 18%, transparent);
         font-weight: 600; }
""",
    ]

    def say(self, text: str = "", kind: str = "plain") -> None:
        """Show a sentence; kind: plain or warning."""
        self.param.update(text=text, kind=kind, visible=bool(text))


class Opening:
    """Tells `on_open` the id of what was pressed in the browser."""

    def __init__(self, on_open: Callable[[str], None] | None = None, **params: Any) -> None:
        self._on_open = on_open
        super().__init__(**params)

    def _handle_msg(self, data: Any) -> None:
        if self._on_open is not None:
            self._on_open(str(data))


class RowTable(Opening, JSComponent):
    """A table of text. ids: what a row stands for, if it can be opened; passed to `on_open`."""

    caption = param.String()
    columns = param.List()
    rows = param.List()
    ids = param.List()

    _esm = (
        NODE
        + """
export function render({model}) {
  const box = node('div', 'scrolls');
  box.tabIndex = 0;
  const draw = () => {
    const table = node('table'), head = node('tr'), body = node('tbody');
    if (model.caption) table.append(node('caption', '', model.caption));
    for (const name of model.columns) {
      const cell = node('th', '', name);
      cell.scope = 'col';
      head.append(cell);
    }
    model.rows.forEach((values, at) => {
      const row = node('tr');
      values.forEach((value, column) => {
        const cell = node('td', typeof value === 'number' ? 'number' : '');
        const id = model.ids[at];
        if (column === 0 && id) {
          const opens = node('button', '', value);
          opens.onclick = () => model.send_msg(id);
          cell.append(opens);
        } else cell.textContent = value;
        row.append(cell);
      });
      body.append(row);
    });
    const top = node('thead');
    top.append(head);
    table.append(top, body);
    box.setAttribute('aria-label', model.caption || 'table');
    box.replaceChildren(...(model.columns.length ? [table] : []));
  };
  model.on(['caption', 'columns', 'rows', 'ids'], draw);
  draw();
  return box;
}"""
    )
    _stylesheets: ClassVar = [
        FONT,
        f"""
.scrolls {{ overflow: auto; max-height: 70vh; max-width: 100%; }}
table {{ border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: 6px 0; }}
th, td {{ text-align: left; padding: 6px 14px 6px 8px; border-bottom: {LINE};
          max-width: 32em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
th {{ font-weight: 600; }}
tbody tr:hover {{ background: color-mix(in srgb, currentColor 7%, transparent); }}
button {{ font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
          text-decoration: underline; text-underline-offset: 3px; }}
""",
    ]

    def fill(
        self, records: Sequence[dict[str, Any]], ids: Sequence[str] = (), caption: str = ""
    ) -> None:
        """Show records, which have the same keys, in order."""
        columns = list(records[0]) if records else []
        rows = [
            [cell(name, value)[:LONGEST] for name, value in record.items()] for record in records
        ]
        self.param.update(columns=columns, rows=rows, ids=list(ids), caption=caption)
        self.visible = bool(rows)


class PictureGrid(Opening, JSComponent):
    """Pictures with a few words below each; one that is pressed is passed to `on_open`."""

    items = param.List(doc="of dicts: id, src (data:), alt, lines, strong")

    _esm = (
        NODE
        + """
export function render({model}) {
  const list = node('ul');
  const draw = () => list.replaceChildren(...model.items.map(item => {
    const entry = node('li'), opens = node('button'), picture = node('img');
    opens.onclick = () => model.send_msg(item.id);
    picture.alt = item.alt;
    if (item.src) { picture.src = item.src; opens.append(picture); }
    else opens.append(node('span', 'none', 'not staged any more'));
    opens.dataset.id = item.id;
    item.lines.forEach((text, at) => opens.append(node('span', at ? '' : 'first', text)));
    entry.append(opens);
    return entry;
  }));
  model.on('items', draw);
  draw();
  return list;
}"""
    )
    _stylesheets: ClassVar = [
        FONT,
        f"""
ul {{ list-style: none; margin: 0; padding: 0; display: grid; gap: 12px;
      grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); }}
li {{ min-width: 0; }}
button {{ font: inherit; font-size: 12.5px; color: inherit; cursor: pointer; width: 100%;
          height: 100%; padding: 8px; border: {LINE}; border-radius: 8px; background: none;
          display: flex; flex-direction: column; gap: 2px; text-align: left; }}
button:hover, button:focus-visible {{ outline: 2px solid #00838f; outline-offset: -1px;
          background: color-mix(in srgb, #00838f 10%, transparent); }}
img, .none {{ width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
              border-radius: 4px; margin-bottom: 4px;
              background: color-mix(in srgb, currentColor 8%, transparent); }}
.none {{ display: grid; place-items: center; text-align: center; }}
span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 100%;
        font-variant-numeric: tabular-nums; }}
.first {{ font-weight: 600; }}
""",
    ]

    def fill(
        self,
        rows: Sequence[dict[str, Any]],
        pictures: dict[str, np.ndarray],
        lines: Callable[[dict[str, Any]], list[str]],
    ) -> None:
        """rows: with an image_id. pictures: uint8 (H, W, C) by id. lines: below each."""
        self.items = [
            {
                "id": row["image_id"],
                "src": data_uri(pictures[row["image_id"]]) if row["image_id"] in pictures else "",
                "alt": f"image {row['image_id'][:ID_DIGITS]}",
                "lines": lines(row),
            }
            for row in rows
        ]


class Shown(JSComponent):
    """Large pictures beside each other, each with its caption; not to be pressed."""

    items = param.List(doc="of dicts: src (data:), caption")

    _esm = (
        NODE
        + """
export function render({model}) {
  const box = node('div', 'side');
  const draw = () => box.replaceChildren(...model.items.map(item => {
    const figure = node('figure'), picture = node('img');
    picture.src = item.src;
    picture.alt = item.caption;
    figure.append(picture, node('figcaption', '', item.caption));
    return figure;
  }));
  model.on('items', draw);
  draw();
  return box;
}"""
    )
    _stylesheets: ClassVar = [
        FONT,
        """
.side { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(128px, 240px)); }
figure { margin: 0; min-width: 0; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
      border-radius: 6px; background: color-mix(in srgb, currentColor 8%, transparent); }
figcaption { font-size: 12.5px; padding-top: 2px; }
""",
    ]


def filters(*widgets: Viewable) -> pmui.FlexBox:
    """Widgets side by side, in as many lines as they need."""
    for widget in widgets:
        widget.param.update(margin=(8, 12, 8, 0), align="center")
        widget.styles = {"max-width": "100%"}
    return pmui.FlexBox(*widgets, align_items="center", sizing_mode="stretch_width")


def data_uri(pixels_HWC: np.ndarray, most: int = THUMBNAIL) -> str:
    """Return a PNG that needs no request; larger pictures are made so small, none larger."""
    data = encode_png(pixels_HWC)
    if max(pixels_HWC.shape[:2]) > most:
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((most, most))
            buffer = io.BytesIO()
            image.save(buffer, format="png")
            data = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def number(value: float | None) -> str:
    """Write a number for people; empty for None."""
    if value is None:
        return "none"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"

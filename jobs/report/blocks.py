"""What a report's sections are made of: text, tables, pictures, charts. All of it is plain data,
which the page escapes; nothing here is HTML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

NONE = "–"  # of a number that there is not
LEFT_OUT = "Left out to keep this page small."
LEAST_P = 1e-4


class Missing(Exception):
    """A section has nothing to show; the sentence says why."""


@dataclasses.dataclass(frozen=True)
class Say:
    """A sentence or a few. tone: plain, good or bad."""

    kind: ClassVar[str] = "say"
    text: str
    tone: str = "plain"


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table; the first cell of a row names it."""

    kind: ClassVar[str] = "rows"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """uri: a data URI. width, height: on the page, in CSS pixels. facts: names and values."""

    uri: str
    alt: str
    width: int
    height: int
    caption: str = ""
    facts: Sequence[tuple[str, str]] = ()
    pixelated: bool = True


@dataclasses.dataclass(frozen=True)
class Pictures:
    """layout: grid (as many beside each other as there is room for) or rows (one below another)."""

    kind: ClassVar[str] = "pictures"
    caption: str
    pictures: Sequence[Picture]
    layout: str = "grid"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure and the same in words.

    figure: a Bokeh model. caption: the same in words, for whoever does not see it. sprites: a data
    URI that its tooltips, which lie outside of it, use as `var(--sprites)`; of one chart a page.
    """

    kind: ClassVar[str] = "chart"
    name: str
    title: str
    caption: str
    figure: Any
    sprites: str = ""


@dataclasses.dataclass(frozen=True)
class Fold:
    """Text as it is, shown on request."""

    kind: ClassVar[str] = "fold"
    summary: str
    text: str


@dataclasses.dataclass(frozen=True)
class FoldedRows:
    """A table, shown on request."""

    kind: ClassVar[str] = "folded_rows"
    summary: str
    table: Rows


@dataclasses.dataclass(frozen=True)
class Commands:
    """Lines for a shell, each with what it tells."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[tuple[str, str]]


Block = Say | Rows | Pictures | Chart | Fold | FoldedRows | Commands


@dataclasses.dataclass(frozen=True)
class Section:
    """name: its anchor in the page."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much of everything a page has room for. share: of what it has at the most."""

    share: float = 1.0

    def of(self, most: int) -> int:
        """Return the share of `most` that is left to show, at least one."""
        return math.ceil(most * self.share)


def number(value: Any, digits: int = 4) -> str:
    """For a reader: few digits, a dash for what is not there or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return str(value)
    if value is None or not math.isfinite(value):
        return NONE
    if isinstance(value, int):
        text = f"{value:,}"
    elif abs(value) >= 10 ** (digits - 1):
        text = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:,.1f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def p_text(value: float | None) -> str:
    """Of a p-value: `p = 0.012`."""
    if value is None:
        return "no p-value"
    return f"p < {LEAST_P:.4f}" if value < LEAST_P else f"p = {value:.2g}"


def percent(share: float) -> str:
    """`5%`, `0.4%`."""
    return f"{100 * share:.3g}%"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

"""A file written for a table."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """A file written for a table: all that a commit must know without opening it."""

    table: str
    path: str  # relative to the table
    size: int
    rows: int
    partition: dict[str, str] = dataclasses.field(default_factory=dict)
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)

"""The formats of sources: how names of files tell them, and which module reads each.

To add one: its name and its entry here, and a module that is a `Format` (jobs.sources.base).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

FormatName = Literal["parquet", "files", "webdataset"]


@dataclasses.dataclass(frozen=True)
class FormatEntry:
    """endings: of its files' names, without the dot. module: what reads it."""

    endings: tuple[str, ...]
    module: str


FORMATS: dict[FormatName, FormatEntry] = {
    "parquet": FormatEntry(("parquet", "pq"), "jobs.sources.parquet"),
    "files": FormatEntry(
        ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"), "jobs.sources.image_files"
    ),
    "webdataset": FormatEntry(("tar", "tgz", "tar.gz"), "jobs.sources.webdataset"),
}
_ENDINGS: dict[FormatName, tuple[str, ...]] = {
    name: tuple(f".{ending}" for ending in entry.endings) for name, entry in FORMATS.items()
}


def recognise(uri: str) -> FormatName | None:
    """Name the format of a file by the end of its name; None where no format has it."""
    name = uri[-16:].lower()
    for fmt, endings in _ENDINGS.items():
        if name.endswith(endings):
            return fmt
    return None

"""The formats of sources by name, and how file names tell them."""

from __future__ import annotations

from typing import Literal, get_args

FormatName = Literal["parquet", "files", "webdataset"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
EXTENSIONS: dict[FormatName, tuple[str, ...]] = {
    "parquet": ("parquet", "pq"),
    "files": ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"),
    "webdataset": ("tar", "tgz", "tar.gz"),
}
_ENDINGS: dict[FormatName, tuple[str, ...]] = {
    fmt: tuple(f".{ending}" for ending in EXTENSIONS[fmt]) for fmt in FORMATS
}


def recognise(uri: str) -> FormatName | None:
    """The format of a file by the end of its name."""
    name = uri[-16:].lower()
    for fmt, endings in _ENDINGS.items():
        if name.endswith(endings):
            return fmt
    return None

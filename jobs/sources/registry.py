"""The format of a source: the one that is named, or that its files show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from jobs.errors import InputError
from jobs.sources.base import Format
from jobs.sources.format_names import EXTENSIONS, FORMATS, FormatName, recognise
from jobs.sources.listing import SourceFile


def choose_format(files: Iterable[SourceFile], source: str) -> FormatName:
    """The format that most of the given files have; raises InputError where none has any."""
    counts = Counter(fmt for file in files if (fmt := recognise(file.uri)) is not None)
    if not counts:
        endings = ", ".join(f".{ending}" for fmt in FORMATS for ending in EXTENSIONS[fmt])
        raise InputError(f"the source {source} has no image or Parquet files ({endings})")
    return max(FORMATS, key=lambda fmt: counts[fmt])


def format_of(name: FormatName) -> Format:
    """The code of a format, imported when it is needed."""
    if name == "parquet":
        from jobs.sources import parquet as module
    elif name == "files":
        from jobs.sources import image_files as module
    else:
        from jobs.sources import webdataset as module
    return module

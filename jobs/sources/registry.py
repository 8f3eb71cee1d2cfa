"""The format of a source: the one that is named, or that its files show."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable
from typing import cast

from jobs.errors import InputError
from jobs.sources.base import Format
from jobs.sources.format_names import FORMATS, FormatName, recognise
from jobs.sources.listing import SourceFile


def choose_format(files: Iterable[SourceFile], source: str) -> FormatName:
    """Choose the format that most of the files have. Raises InputError where none has any."""
    counts = Counter(fmt for file in files if (fmt := recognise(file.uri)) is not None)
    if not counts:
        endings = ", ".join(f".{end}" for entry in FORMATS.values() for end in entry.endings)
        raise InputError(f"the source {source} has no image or Parquet files ({endings})")
    return max(FORMATS, key=lambda fmt: counts[fmt])


def format_of(name: FormatName) -> Format:
    """Import the module of a format."""
    return cast(Format, importlib.import_module(FORMATS[name].module))

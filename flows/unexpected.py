"""Errors that nobody foresaw: a sentence for the operator, the traceback for whoever mends it."""

from __future__ import annotations

import os
import tempfile
import time
import traceback

from flows.prefect_env import private_folder
from jobs.errors import LatentlakeError
from jobs.lake.uri import without_keys


def unexpected(error: Exception) -> str:
    """Say what it was, where, and the file that has its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    message = f"unexpected {what}{where}; a fault of latentlake, or of what it was given to read"
    kept = _kept("".join(traceback.format_exception(error)))
    return f"{message}; its traceback is in {kept}" if kept else message


def _kept(text: str) -> str | None:
    """None where there is no place for it."""
    try:
        prefix = time.strftime("error-%Y%m%d-%H%M%S-")
        with tempfile.NamedTemporaryFile(
            "w", prefix=prefix, suffix=".txt", dir=private_folder(), delete=False
        ) as file:
            file.write(without_keys(text))
            return file.name
    except (OSError, LatentlakeError):
        return None

"""Every file below a URI, page by page."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from jobs.lake.local_files import files_below
from jobs.lake.storage import attempt, filesystem, local_path


def walk(uri: str) -> Iterator[dict[str, Any]]:
    """Every file below a folder of the lake: `uri`, `size`, `modified` (seconds since 1970)."""
    local = local_path(uri)
    if local is not None:
        for path, status in attempt(lambda: list(files_below(local)), uri, "list"):
            name = path.relative_to(local).as_posix()
            yield {"uri": f"{uri}/{name}", "size": status.st_size, "modified": status.st_mtime}
        return
    fs, path = filesystem(uri)
    found = attempt(lambda: fs.find(path, detail=True), uri, "list")
    assert isinstance(found, dict)
    root = path.rstrip("/")
    for name, info in found.items():
        when = info.get("mtime", info.get("LastModified", 0.0))
        modified = when.timestamp() if isinstance(when, dt.datetime) else float(when)
        yield {"uri": uri + str(name)[len(root) :], "size": info["size"], "modified": modified}


def last_touched(*folders: str) -> float | None:
    """When anything below folders of the lake was written last, seconds since 1970."""
    return max((entry["modified"] for folder in folders for entry in walk(folder)), default=None)

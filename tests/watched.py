"""A folder that is watched: what was opened, written, made or removed in it (Linux's inotify)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

OPENED, MODIFIED, MOVED, MADE, REMOVED = 0x20, 0x2, 0xC0, 0x100, 0x200
NAMES = {OPENED: "opened", MODIFIED: "written", MADE: "made", REMOVED: "removed"}
IS_FOLDER = 0x40000000


class Watched:
    def __init__(self, root: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.folders: dict[int, Path] = {}
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            mask = OPENED | MODIFIED | MOVED | MADE | REMOVED
            number = libc.inotify_add_watch(self.file, os.fsencode(folder), mask)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self.folders[number] = folder

    def touched(self) -> list[str]:
        """Since it was asked last."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.file, 1 << 16):
                while data:
                    number, mask, _, length = struct.unpack("iIII", data[:16])
                    name = data[16 : 16 + length].rstrip(b"\0").decode(errors="replace")
                    data = data[16 + length :]
                    what = NAMES.get(mask & 0xFFF, hex(mask))
                    found.append(f"{self.folders[number] / name} {what}")
        return found


@contextlib.contextmanager
def watching(root: Path) -> Iterator[Watched]:
    watched = Watched(root)
    try:
        yield watched
    finally:
        os.close(watched.file)

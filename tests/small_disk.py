"""A file system of our own that is as small as a test wants it: tmpfs, where root may mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LARGE = "size=1g,nr_inodes=100k"


class SmallDisk:
    def __init__(self, root: Path) -> None:
        self.root = root

    def leave_files(self, count: int) -> None:
        """Room for so many more files and folders, and bytes enough."""
        held = os.statvfs(self.root)
        self._remount(f"size=1g,nr_inodes={held.f_files - held.f_ffree + count}")

    def leave_bytes(self, count: int) -> None:
        """Room for so many more bytes, by the page, and files enough."""
        held = os.statvfs(self.root)
        used = (held.f_blocks - held.f_bfree) * held.f_frsize
        self._remount(f"size={used + count},nr_inodes=100k")

    def grow(self) -> None:
        self._remount(LARGE)

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.root], check=True)


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[SmallDisk]:
    """Skips, with a word, where none can be mounted."""
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", LARGE, "none", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "-l", root], check=True)

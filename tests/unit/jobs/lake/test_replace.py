"""Derived files are replaced whole, and leave nothing beside them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.lake.replace import replace
from jobs.lake.storage import read


def test_the_old_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "night" / "report.html"
    for data in (b"first and longer", b"second"):
        replace(path.as_uri(), data)
        assert read(path.as_uri()) == data
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    whole = [b"a" * 3_000_000, b"b" * 3_000_000]
    replace(path.as_uri(), whole[0])
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(20):
        replace(path.as_uri(), whole[turn % 2])
    done.set()
    reader.join()
    assert seen
    assert all(data in whole for data in seen)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="access denied"):
        replace((tmp_path / "file" / "runs" / "report.html").as_uri(), b"")

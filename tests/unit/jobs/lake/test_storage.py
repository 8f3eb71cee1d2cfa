from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobs.errors import AlreadyThere, InputError, StorageError
from jobs.lake import local_files, storage
from jobs.lake.storage import create, create_or_keep, join, read, resolve_uri


def test_paths_become_absolute_uris_and_come_back(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = resolve_uri("a lake")
    assert uri == (tmp_path / "a lake").as_uri()
    assert storage.local_path(uri) == tmp_path / "a lake"
    assert resolve_uri("s3://bucket/prefix/") == "s3://bucket/prefix"
    with pytest.raises(InputError, match="no bucket"):
        resolve_uri("s3://")
    with pytest.raises(InputError, match="use file, s3"):
        resolve_uri("gopher://x/y")


def test_a_put_is_create_only(tmp_path: Path) -> None:
    uri = join(tmp_path.as_uri(), "a", "b.json")
    create(uri, b"first")
    with pytest.raises(AlreadyThere):
        create(uri, b"second")
    assert create_or_keep(uri, b"third") is False
    assert read(uri) == b"first"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]  # no temporary file left


def test_of_many_writers_at_once_exactly_one_wins(tmp_path: Path) -> None:
    uri = join(tmp_path.as_uri(), "x")
    won: list[int] = []

    def put(i: int) -> None:
        if create_or_keep(uri, str(i).encode() * 10_000):
            won.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read(uri) == str(won[0]).encode() * 10_000


def test_a_put_whose_answer_was_lost_has_landed(tmp_path: Path, monkeypatch) -> None:
    real, calls = local_files.create, []

    def lands_and_fails(path: Path, data: bytes) -> None:
        calls.append(path)
        real(path, data)
        if len(calls) == 1:
            raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(local_files, "create", lands_and_fails)
    uri = join(tmp_path.as_uri(), "x")
    create(uri, b"mine")
    assert len(calls) == 2
    assert read(uri) == b"mine"


def test_what_is_not_there(tmp_path: Path) -> None:
    uri = join(tmp_path.as_uri(), "none")
    assert storage.read_if_there(uri) is None
    assert storage.exists(uri) is False
    assert storage.list_folder(uri) == []
    assert storage.folder_names(uri) == []
    storage.delete_tree(uri)
    with pytest.raises(InputError, match="does not exist"):
        read(uri)


def test_marks_in_an_s3_key_are_characters() -> None:
    assert storage.filesystem("s3://b/img-?.parquet")[1] == "b/img-?.parquet"
    assert storage.filesystem("s3://b/a#1.parquet")[1] == "b/a#1.parquet"


def test_a_lake_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="access denied"):
        create(join(tmp_path.as_uri(), "file", "lake", "x"), b"")


@pytest.mark.slow
def test_faults_that_pass_are_tried_again_and_others_are_not() -> None:
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError("connection reset by peer")
        return "answer"

    assert storage.attempt(flaky, "s3://b/x", "read") == "answer"
    assert len(calls) == 3

    def denied() -> None:
        calls.append(1)
        raise PermissionError("Access Denied")

    calls.clear()
    with pytest.raises(InputError, match="credentials"):
        storage.attempt(denied, "s3://b/x", "read")
    assert len(calls) == 1

    def down() -> None:
        calls.append(1)
        raise ConnectionError("SlowDown: please reduce your request rate")

    calls.clear()
    with pytest.raises(StorageError, match="cannot read s3://b/x"):
        storage.attempt(down, "s3://b/x", "read")
    assert len(calls) == storage.ATTEMPTS

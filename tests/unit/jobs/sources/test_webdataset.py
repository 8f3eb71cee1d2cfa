"""Archives of samples as sources: whole, cut, hostile."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from jobs.engine import runner
from jobs.errors import JobError
from jobs.lake.paths import LakePaths
from tests.helpers import image_bytes, image_ids, staged_ids, staged_rows
from tests.inline import InlineStage


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def samples(numbers: range) -> list[tuple[str, bytes]]:
    members = []
    for number, data in zip(numbers, image_bytes(numbers), strict=True):
        members += [
            (f"{number:05}.cls", str(number % 10).encode()),
            (f"{number:05}.png", data),
            (f"{number:05}.json", json.dumps({"n": number}).encode()),
        ]
    return members


@pytest.mark.parametrize("packed", [False, True])
def test_webdataset_tars(lake, tmp_path, packed: bool) -> None:
    ending = "tar.gz" if packed else "tar"
    for shard in range(3):
        numbers = range(shard * 20, shard * 20 + 20)
        path = tmp_path / "s" / f"split=train/{shard:03}.{ending}"
        write_tar(path, samples(numbers), "w:gz" if packed else "w")
    report = runner.run(InlineStage(lake, tmp_path / "s"))
    assert report.counts["staged"] == report.counts["rows_in"] == 60
    found = staged_rows(lake, "image_id, label, json, text, source_member, source_row")
    assert [r["image_id"] for r in found] == image_ids(range(60))
    assert [r["label"] for r in found] == [n % 10 for n in range(60)]
    assert [json.loads(r["json"])["n"] for r in found] == list(range(60))
    assert found[25]["source_member"] == "00025.png"
    assert found[25]["source_row"] == 5
    assert found[0]["text"] is None
    assert runner.run(InlineStage(lake, tmp_path / "s")).units == 0


def test_what_is_wrong_in_an_archive_costs_its_row(lake, tmp_path) -> None:
    good = image_bytes(range(5))
    members = [
        ("a.png", good[0]),
        ("../../etc/evil.png", good[1]),
        ("b.png", b"nothing"),
        ("c.cls", b"cat"),
        ("c.png", good[2]),
        ("d/../../e.png", good[3]),
        ("f.jpg", good[4]),
        ("f.seg.png", good[0]),  # a second picture of a sample
        ("._f.png", b"x"),
    ]
    write_tar(tmp_path / "s.tar", members)
    before = set(tmp_path.parent.iterdir())
    runner.run(InlineStage(lake, tmp_path / "s.tar", max_refused=0.9))
    assert staged_ids(lake) == {
        image_ids(range(5))[0],
        image_ids(range(5))[4],
    }
    told = {r["source_member"]: r["reason"] for r in staged_rows(lake, "*", "quarantine")}
    assert told == {
        "../../etc/evil.png": "unsafe_path",
        "b.png": "not_an_image",
        "c.png": "schema",
        "d/../../e.png": "unsafe_path",
    }
    assert set(tmp_path.parent.iterdir()) == before


@pytest.mark.slow
def test_bombs_cost_their_own_file_and_bounded_memory(lake, tmp_path) -> None:
    import resource

    folder = tmp_path / "s"
    write_tar(folder / "a.tar", samples(range(20)))
    zeros = io.BytesIO()
    with gzip.open(zeros, "wb", compresslevel=9) as packer:
        head = tarfile.TarInfo("z.png")
        head.size = 4 << 30
        packer.write(head.tobuf())
        block = bytes(1 << 20)
        for _ in range(400):
            packer.write(block)
    (folder / "b.tgz").write_bytes(zeros.getvalue())
    claimed = io.BytesIO()
    with gzip.open(claimed, "wb", compresslevel=9) as packer:
        head = tarfile.TarInfo("z.png")
        head.size = 100 << 20  # within the bound of one image
        packer.write(head.tobuf())
        for _ in range(100):
            packer.write(block)
        packer.write(bytes(1024))
    (folder / "c.tgz").write_bytes(claimed.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runner.run(InlineStage(lake, folder, max_refused=0.9))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert staged_ids(lake) == set(image_ids(range(20)))
    told = {Path(r["source_uri"]).name: r["reason"] for r in staged_rows(lake, "*", "quarantine")}
    assert told == {"b.tgz": "too_many_bytes", "c.tgz": "too_many_bytes"}
    assert (after - before) / 1024 < 700  # MiB; what they unpack to is 500


def test_a_cut_archive_is_refused_as_a_file(lake, tmp_path) -> None:
    write_tar(tmp_path / "s" / "a.tar", samples(range(10)))
    write_tar(tmp_path / "s" / "b.tar", samples(range(10, 20)))
    data = (tmp_path / "s" / "b.tar").read_bytes()
    (tmp_path / "s" / "b.tar").write_bytes(data[: len(data) // 2 + 100])
    report = runner.run(InlineStage(lake, tmp_path / "s", max_refused=0.5))
    assert report.counts["files_refused"] == 1
    assert staged_ids(lake) == set(image_ids(range(10)))
    (told,) = staged_rows(lake, "source_row, reason", "quarantine")
    assert told["source_row"] == -1
    with pytest.raises(JobError, match="1 of 11 rows refused"):
        runner.run(InlineStage(LakePaths(lake.uri + "2"), tmp_path / "s"))


def test_links_and_devices_in_an_archive_are_not_read(lake, tmp_path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("a.png", tarfile.SYMTYPE),
            ("b.png", tarfile.LNKTYPE),
            ("c.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
        data = image_bytes([0])[0]
        info = tarfile.TarInfo("d.png")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    report = runner.run(InlineStage(lake, path))
    assert report.counts["rows_in"] == report.counts["staged"] == 1

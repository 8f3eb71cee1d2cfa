"""Sources that are broken or mean harm: each costs at most its own row or file."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.engine import runner
from jobs.errors import InputError, RejectedInput
from jobs.imaging.decode import decode
from jobs.imaging.pixel_arrays import Pixels
from jobs.imaging.target import Target
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.sources.base import FileRange, Layout
from jobs.sources.listing import Scope, list_files
from tests.helpers import ROOT, image_bytes, image_ids, staged_ids
from tests.inline import InlineStage
from tests.unit.jobs.sources.test_webdataset import write_tar


def members(count: int) -> list[tuple[str, bytes]]:
    return [(f"{n}.png", data) for n, data in enumerate(image_bytes(range(count)))]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([("z.png", b""), ("z.cls", b"1")], "zero_bytes"),
        ([("z.png", image_bytes([50])[0]), ("z.cls", b"9" * 20)], "schema"),
        ([("z.png", image_bytes([50])[0]), ("z.txt", b"\xff\xfe")], "schema"),
    ],
)
def test_one_bad_sample_of_an_archive(lake, tmp_path, extra, reason: str) -> None:
    write_tar(tmp_path / "a.tar", members(40) + extra)
    runner.run(InlineStage(lake, tmp_path / "a.tar"))
    assert staged_ids(lake) == set(image_ids(range(40)))
    rows = views.sql(lake, "SELECT source_member, reason FROM quarantine").to_pylist()
    assert rows == [{"source_member": "z.png", "reason": reason}]


def test_a_member_whose_name_is_not_utf8_is_staged(lake, tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", errors="surrogateescape") as archive:
        data = image_bytes([0])[0]
        info = tarfile.TarInfo("caf\udce9.png")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    runner.run(InlineStage(lake, tmp_path / "a.tar"))
    rows = views.sql(lake, "SELECT source_member FROM images").to_pylist()
    assert rows == [{"source_member": "caf�.png"}]


def test_an_archives_own_label_goes_before_that_of_its_folder(lake, tmp_path) -> None:
    write_tar(tmp_path / "s" / "label=cat" / "a.tar", [*members(2), ("1.cls", b"7")])
    runner.run(InlineStage(lake, tmp_path / "s"))
    labels = views.sql(lake, "SELECT label FROM images ORDER BY source_row").to_pylist()
    assert labels == [{"label": None}, {"label": 7}]


def test_an_archive_without_images_is_refused_once(lake, tmp_path) -> None:
    write_tar(tmp_path / "s" / "a.tar", members(3))
    write_tar(tmp_path / "s" / "b.tar", [("README.md", b"hello")])
    runner.run(InlineStage(lake, tmp_path / "s", max_refused=0.5))
    rows = views.sql(lake, "SELECT reason FROM quarantine").to_pylist()
    assert rows == [{"reason": "no_images"}]
    assert runner.run(InlineStage(lake, tmp_path / "s", max_refused=0.5)).units == 0


def write_columns(path: Path, names: list[str], columns: list) -> None:
    pq.write_table(pa.table(columns, names=names), path)


@pytest.mark.parametrize("name", ["Night", "LABEL", "image_ID", "Dataset"])
def test_names_that_differ_in_case_only_are_left_out(lake, tmp_path, name: str) -> None:
    columns = [pa.array(image_bytes(range(2))), pa.array([1, 2]), pa.array([3, 4])]
    write_columns(tmp_path / "a.parquet", ["image", "label", name], columns)
    runner.run(InlineStage(lake, tmp_path / "a.parquet"))
    assert staged_ids(lake) == set(image_ids(range(2)))


def test_a_column_named_twice(lake, tmp_path) -> None:
    images, numbers = pa.array(image_bytes(range(2))), pa.array([1, 2])
    write_columns(tmp_path / "a.parquet", ["image", "n", "n"], [images, numbers, numbers])
    runner.run(InlineStage(lake, tmp_path / "a.parquet"))
    assert staged_ids(lake) == set(image_ids(range(2)))
    write_columns(tmp_path / "b.parquet", ["image", "image"], [images, images])
    with pytest.raises(InputError, match="no image column"):
        runner.run(InlineStage(LakePaths(lake.uri + "2"), tmp_path / "b.parquet"))


def test_text_that_is_not_utf8_is_kept_readable(lake, tmp_path) -> None:
    raw = pa.array([b"caf\xe9", b"b"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    columns = [pa.array(image_bytes(range(2))), text]
    write_columns(tmp_path / "a.parquet", ["image", "label"], columns)
    runner.run(InlineStage(lake, tmp_path / "a.parquet"))
    labels = views.sql(lake, "SELECT label FROM images ORDER BY source_row").to_pylist()
    assert labels == [{"label": "caf�"}, {"label": "b"}]


def test_a_file_name_that_is_not_utf8(lake, tmp_path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    data = image_bytes(range(3))
    for number in range(2):
        (folder / f"{number}.png").write_bytes(data[number])
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(data[2])
    runner.run(InlineStage(lake, folder))
    assert staged_ids(lake) == set(image_ids(range(3)))
    assert runner.run(InlineStage(lake, folder)).units == 0


def test_a_folder_that_goes_while_it_is_listed(tmp_path, monkeypatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "0.png").write_bytes(b"x")
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("sub"):
            raise FileNotFoundError(2, "gone", folder)
        return real(folder)

    monkeypatch.setattr("jobs.sources.listing.os.scandir", scandir)
    assert [file.uri.rsplit("/", 1)[-1] for file in list_files(str(tmp_path))] == ["0.png"]


@pytest.mark.filterwarnings("error")
def test_a_pattern_with_odd_classes() -> None:
    assert Scope.of("s3://b/x[)]*.png").has("s3://b/x).png")
    assert not Scope.of("s3://b/x[!)]*.png").has("s3://b/x).png")
    assert Scope.of("s3://b/[a-c^]/*.png").has("s3://b/^/1.png")


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch) -> None:
    """Pillow hands EPS to Ghostscript."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n{ } loop\n%%EOF\n"
    with pytest.raises(RejectedInput) as refusal:
        decode(eps, Target(image_shape=(8, 8, 3)))
    assert refusal.value.reason == "not_an_image"
    assert not (tmp_path / "called").exists()


def test_a_footer_that_claims_more_rows_than_there_are(tmp_path) -> None:
    from jobs.sources import parquet

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(image_bytes(range(100)))}), path)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    # 100 as a zigzag varint becomes 120.
    footer = data[-8 - size : -8].replace(b"\x16\xc8\x01", b"\x16\xf0\x01")
    path.write_bytes(data[: -8 - size] + footer + data[-8:])
    (file,) = list_files(str(path))
    rows = parquet.look(file, Layout()).rows
    assert rows == 120
    part = FileRange(file.uri, file.etag, file.size, "parquet", 0, rows, "image")
    with pytest.raises(RejectedInput, match=r"claims rows up to 120, there are 100|not a readable"):
        list(parquet.read(part, Layout(), []))


BOMBS = """
import resource, sys
from pathlib import Path
from jobs.errors import RejectedInput
from jobs.sources.pinned_read import local_etag
from jobs.sources.base import Layout, FileRange
from jobs.sources import {module}
path = Path(sys.argv[1])
status = path.stat()
rows = {{"stop": int(sys.argv[2]), "image_column": "image"}} if len(sys.argv) > 2 else {{}}
part = FileRange(path.as_uri(), local_etag(status), status.st_size, "parquet", **rows)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for batch in {module}.read(part, Layout(), []):
        assert sum(len(image) for image in batch.images) < 200 << 20
except RejectedInput:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def grown_by(module: str, path: Path, *more: object) -> int:
    """MiB that reading a file takes at most, in a process of its own."""
    code = textwrap.dedent(BOMBS.format(module=module))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *map(str, more)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return int(done.stdout)


@pytest.mark.slow
def test_a_dictionary_of_one_large_value_is_read_in_small_batches(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    value = pa.array([os.urandom(2 << 20)], pa.binary()).take(pa.array([0] * 400))
    pq.write_table(
        pa.table({"image": value}), path, dictionary_pagesize_limit=1 << 30, compression="none"
    )
    assert path.stat().st_size < 3 << 20
    assert grown_by("parquet", path, 400) < 300  # all rows at once: 2,200


@pytest.mark.slow
def test_a_header_of_an_archive_that_unpacks_to_gigabytes(tmp_path) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 600 << 20
    with gzip.open(tmp_path / "a.tgz", "wb", 1) as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(600):
            file.write(bytes(1 << 20))
    assert grown_by("webdataset", tmp_path / "a.tgz") < 100


def test_holes_in_an_archive_are_not_filled(tmp_path) -> None:
    head = tarfile.TarInfo("0.png")
    body = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    body[156:157] = b"S"
    body[386:398] = body[483:495] = b"%011o\0" % (500 << 20)
    body[398:410] = b"%011o\0" % 0
    body[148:156] = b" " * 8
    body[148:156] = b"%06o\0 " % sum(body)
    (tmp_path / "a.tar").write_bytes(bytes(body) + bytes(1024))
    assert grown_by("webdataset", tmp_path / "a.tar") < 100


@pytest.mark.slow
def test_large_targets_are_staged_a_few_at_a_time(lake, tmp_path) -> None:
    from jobs.stage import rows as stage_rows

    folder = tmp_path / "s"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(40):
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    sizes = []
    real = stage_rows.UnitRows._add

    def add(self, batch, own):
        sizes.append(len(batch.images))
        return real(self, batch, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_rows.UnitRows, "_add", add)
        runner.run(
            InlineStage(lake, folder, height=1024, width=1024, channels=3, rows_per_unit=None)
        )
    assert sum(sizes) == 40
    assert max(sizes) * 1024 * 1024 * 3 <= 32 << 20


# What an image costs to decode


def png(width: int, height: int, kind: int, depth: int) -> bytes:
    """One colour. kind: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    row = b"\0" + b"\x7f" * (width * channels * depth // 8)
    packed = zlib.compressobj(9)
    rows = b"".join([*(packed.compress(row) for _ in range(height)), packed.flush()])
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def progressive(side: int, subsampling: int) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise((side, side), 50).convert("RGB")
    picture.save(buffer, "jpeg", progressive=True, subsampling=subsampling)
    return buffer.getvalue()


def tiled_tiff(tile: int) -> bytes:
    """8x8 grey, which says that its only tile is so wide and long."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8), (325, 64)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 72)
        + bytes(64)
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


FEW = Target(image_shape=(8, 8, 3), max_pixels=1000)


@pytest.mark.parametrize(
    ("data", "fits"),
    [
        (png(31, 31, 2, 8), True),
        (png(31, 31, 6, 8), True),
        (png(31, 31, 0, 16), True),
        (png(31, 31, 2, 16), False),  # 6 bytes a pixel
        (png(31, 31, 6, 16), False),  # 8
        (png(22, 22, 6, 16), True),
        (png(32, 32, 0, 8), False),
        (progressive(31, 2), True),  # 4:2:0, three bytes of coefficients
        (progressive(31, 0), False),  # 4:4:4, six
        (progressive(25, 0), True),
        (tiled_tiff(16), True),
        (tiled_tiff(60_000), False),
        (np.zeros((31, 31, 3), np.uint16), False),
        (np.zeros((31, 31, 3), np.uint8), True),
    ],
)
def test_the_bound_is_of_bytes_as_they_are_decoded(data, fits: bool) -> None:
    given = Pixels(data) if isinstance(data, np.ndarray) else data
    if fits:
        assert decode(given, FEW).pixels_HWC.shape == (8, 8, 3)
        return
    with pytest.raises(RejectedInput) as refused:
        decode(given, FEW)
    assert refused.value.reason == "too_many_pixels"


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = progressive(31, 2)
    last = data.rindex(b"\xff\xda")
    scan = data[last : data.rindex(b"\xff\xd9")]
    for copies, refused in ((20, False), (200, True)):
        bomb = data[:last] + scan * copies + b"\xff\xd9"
        if refused:
            with pytest.raises(RejectedInput, match="scans; at most"):
                decode(bomb, FEW)
        else:
            decode(bomb, FEW)


@pytest.mark.parametrize("junk", [b"", b"\0", b"\xff", b"\xff\xd0", b"\xff\x01", b"\0\xff\xd7\0"])
def test_what_a_decoder_passes_over_hides_no_scans_and_no_coefficients(junk: bytes) -> None:
    for data, reason in ((progressive(31, 0), "too_many_pixels"), (progressive(25, 2), None)):
        changed = data[:20] + junk + data[20:]  # after the first segment
        if reason is None:
            last = changed.rindex(b"\xff\xda")
            scan = changed[last : changed.rindex(b"\xff\xd9")]
            changed, reason = changed[:last] + scan * 200 + b"\xff\xd9", "decode_error"
        with pytest.raises(RejectedInput) as refused:
            decode(changed, FEW)
        assert refused.value.reason == reason


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_transparency_takes_no_third_picture_of_memory(tmp_path: Path) -> None:
    """36 million pixels: the picture and what it is laid on are 275 MiB."""
    (tmp_path / "a.png").write_bytes(png(6000, 6000, 6, 8))
    code = """
    import sys
    from pathlib import Path
    from jobs.imaging.target import Target
    from jobs.imaging.decode import decode

    def peak():  # of this program; getrusage tells its parent's, if that was higher
        told = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
        return int(told.split()[0])

    decode(open(sys.argv[2], "rb").read(), Target(image_shape=(8, 8, 3)))
    before = peak()
    decode(open(sys.argv[1], "rb").read(), Target(image_shape=(8, 8, 3)))
    print(peak() - before)
    """
    (tmp_path / "b.png").write_bytes(png(8, 8, 6, 8))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "a.png", tmp_path / "b.png"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 400_000, "KiB"

"""Sources of every format, as users have them, through a whole stage job."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine import runner
from jobs.errors import InputError
from jobs.imaging.pixel_arrays import NotPixels, Pixels, pixels_of
from jobs.lake.paths import LakePaths
from jobs.sources.format_names import FORMATS, FormatName, recognise
from jobs.sources.listing import Scope, list_files
from jobs.sources.registry import format_of
from tests.helpers import image_bytes, image_ids, staged_ids, staged_rows, write_files
from tests.inline import InlineStage

# Folders of files


def test_a_folder_of_files_with_partitions_as_columns(lake, tmp_path) -> None:
    names = [f"year=2024/label={'cat' if i % 2 else 'dog'}/{i}.png" for i in range(20)]
    data = dict(zip(names, image_bytes(range(20)), strict=True))
    write_files(tmp_path / "s", data | {"readme.txt": b"hello", ".hidden.png": b"x"})
    report = runner.run(InlineStage(lake, tmp_path / "s", rows_per_unit=7))
    assert report.counts["rows_in"] == report.counts["staged"] == 20
    assert report.units == 3
    found = staged_rows(lake, "image_id, label, year, source_uri, source_row, source_format")
    assert {r["image_id"] for r in found} == set(image_ids(range(20)))
    for row in found:
        assert f"label={row['label']}/" in row["source_uri"]
        assert (row["year"], row["source_row"], row["source_format"]) == ("2024", 0, "PNG")
    assert runner.run(InlineStage(lake, tmp_path / "s", rows_per_unit=7)).units == 0


def test_names_that_need_quoting(lake, tmp_path) -> None:
    names = ["a b.png", "ü%20.png", "x#y?.png", "tag=1 2/z.png"]
    write_files(tmp_path / "s", dict(zip(names, image_bytes(range(4)), strict=True)))
    report = runner.run(InlineStage(lake, tmp_path / "s"))
    assert report.counts["staged"] == 4
    assert runner.run(InlineStage(lake, tmp_path / "s")).units == 0
    (tmp_path / "s" / "x#y?.png").unlink()
    report = runner.run(InlineStage(lake, tmp_path / "s", max_removed=0.5))
    assert report.counts["removed_images"] == 1
    assert set(image_ids([0, 1, 3])) == staged_ids(lake)


def test_a_bad_file_costs_its_own_row(lake, tmp_path) -> None:
    good = dict(zip([f"{i:03}.png" for i in range(100)], image_bytes(range(100)), strict=True))
    bad = {"empty.png": b"", "text.jpg": b"not an image", "cut.png": image_bytes([200])[0][:60]}
    write_files(tmp_path / "s", good | bad)
    report = runner.run(InlineStage(lake, tmp_path / "s"))
    assert report.counts["staged"] == 100
    assert report.counts["rows_in"] == 103
    told = {Path(r["source_uri"]).name: r for r in staged_rows(lake, "*", "quarantine")}
    assert {name: row["reason"] for name, row in told.items()} == {
        "empty.png": "zero_bytes",
        "text.jpg": "not_an_image",
        "cut.png": "truncated",
    }
    assert told["text.jpg"]["byte_length"] == 12
    assert told["text.jpg"]["content_hash"] == hashlib.sha256(b"not an image").hexdigest()


def test_the_format_of_a_mixed_folder_is_that_of_most_files(lake, tmp_path) -> None:
    data = dict(zip([f"{i}.png" for i in range(5)], image_bytes(range(5)), strict=True))
    write_files(tmp_path / "s", data)
    pq.write_table(pa.table({"image": image_bytes([7])}), tmp_path / "s" / "meta.parquet")
    runner.run(InlineStage(lake, tmp_path / "s"))
    assert staged_ids(lake) == set(image_ids(range(5)))
    other = LakePaths(lake.uri + "2")
    runner.run(InlineStage(other, tmp_path / "s", format="parquet"))
    assert staged_ids(other) == set(image_ids([7]))


def test_a_source_without_known_files_says_which_are_known(lake, tmp_path) -> None:
    write_files(tmp_path / "s", {"a.csv": b"1,2"})
    with pytest.raises(InputError, match=r"no image or Parquet files \(\.parquet, .*\.tar"):
        runner.run(InlineStage(lake, tmp_path / "s"))


def test_a_pattern_names_some_of_the_files(lake, tmp_path) -> None:
    names = ["a/1.png", "a/2.png", "b/3.png", "b/c/4.png", "b/5.jpg"]
    write_files(tmp_path / "s", dict(zip(names, image_bytes(range(5)), strict=True)))
    for pattern, wanted in (
        ("s/a/*.png", [0, 1]),
        ("s/*/*.png", [0, 1, 2]),
        ("s/**/*.png", [0, 1, 2, 3]),
        ("s/b/[45]*", [4]),
        ("s/b/?.jpg", [4]),
    ):
        held = LakePaths(f"{lake.uri}-{len(pattern)}-{wanted[-1]}")
        runner.run(InlineStage(held, f"{tmp_path}/{pattern}"))
        assert staged_ids(held) == set(image_ids(wanted)), pattern


@given(st.lists(st.sampled_from(["a", "b.png", "c-d", "e/f", "g/h.png", "g/i/j"]), unique=True))
def test_listing_is_in_the_order_of_uris_and_within_its_scope(names: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), dict.fromkeys(names, b"x"))
        uris = [file.uri for file in list_files(folder)]
        assert uris == sorted(uris)
        assert len(uris) == len(names)
        assert all(Scope.of(folder).has(uri) for uri in uris)
        assert not Scope.of(folder + "2").has(folder + "/a")
        inside = Scope.of(f"{folder}/**/*.png")
        assert {u for u in uris if inside.has(u)} == {
            file.uri for file in list_files(f"{folder}/**/*.png")
        }


# Parquet


def test_nested_columns_by_dotted_name(lake, tmp_path) -> None:
    data = image_bytes(range(6))
    sample = [{"meta": {"n": i}, "photo": {"bytes": d, "path": "x"}} for i, d in enumerate(data)]
    sample[3]["photo"] = None
    table = pa.table({"sample": sample, "k": list(range(6))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    with pytest.raises(InputError, match="name one of"):
        runner.run(InlineStage(lake, tmp_path / "a.parquet"))
    settings = {"image_column": "sample.photo", "max_refused": 0.5}
    runner.run(InlineStage(lake, tmp_path / "a.parquet", **settings))
    found = staged_rows(lake, "image_id, k")
    assert [r["k"] for r in found] == [0, 1, 2, 4, 5]
    assert [r["image_id"] for r in found] == [
        i for n, i in enumerate(image_ids(range(6))) if n != 3
    ]
    assert [r["reason"] for r in staged_rows(lake, "reason", "quarantine")] == ["no_bytes"]


def pictures(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *shape), dtype=np.uint8)


def array_columns() -> dict[str, tuple[pa.Array, np.ndarray, dict]]:
    grey, colour = pictures(5, (28, 28)), pictures(5, (28, 28, 3))
    planes = colour.transpose(0, 3, 1, 2)
    flat = pa.array(colour.reshape(-1))
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(colour))
    nested = pa.FixedSizeListArray.from_arrays(
        pa.FixedSizeListArray.from_arrays(pa.array(grey.reshape(-1)), 28), 28
    )
    binary = pa.array([c.tobytes() for c in colour], pa.binary(28 * 28 * 3))
    deep = pa.list_(pa.list_(pa.list_(pa.uint8())))
    flat_list = pa.FixedSizeListArray.from_arrays(flat, 28 * 28 * 3)
    flat_planes = pa.array([p.tobytes() for p in planes], pa.binary(28 * 28 * 3))
    hwc, chw = {"array_shape": [28, 28, 3]}, {"array_shape": [3, 28, 28]}
    return {
        "lists": (pa.array(grey.tolist()), grey, {}),
        "lists of colours": (pa.array(colour.tolist(), deep), colour, {}),
        "lists of planes": (pa.array(planes.tolist()), colour, {}),
        "fixed lists": (nested, grey, {}),
        "flat fixed list": (flat_list, colour, hwc),
        "tensor": (tensor, colour, {}),
        "fixed binary": (binary, colour, hwc),
        "flat planes": (flat_planes, colour, chw),
    }


@pytest.mark.parametrize("kind", array_columns())
def test_pixel_arrays_are_staged_as_they_are(lake, tmp_path, kind: str) -> None:
    column, pixels, settings = array_columns()[kind]
    pq.write_table(pa.table({"pixels": column, "label": list(range(5))}), tmp_path / "a.parquet")
    channels = 1 if pixels.ndim == 3 else 3
    runner.run(InlineStage(lake, tmp_path / "a.parquet", channels=channels, **settings))
    found = staged_rows(lake, "image_id, image, label, source_format")
    assert [r["label"] for r in found] == list(range(5))
    for row, picture in zip(found, pixels, strict=True):
        assert row["image"] == picture.tobytes()
        assert row["image_id"] == Pixels(picture).image_id
        assert row["source_format"] == "array"


def test_flat_pixels_without_a_shape_are_asked_for_it(lake, tmp_path) -> None:
    column = pa.array([bytes(12)], pa.binary(12))
    pq.write_table(pa.table({"pixels": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"--array-shape HxWxC"):
        runner.run(InlineStage(lake, tmp_path / "a.parquet"))


def test_values_that_are_no_image_say_why() -> None:
    values = [[[1, 2], [3, 4]], None, [[1], [2, 3]], [[300, 2], [3, 4]], [[-1]], [[None]], []]
    column = pa.array([*values, [[70_000]]], pa.list_(pa.list_(pa.int64())))
    found = pixels_of(column, None)
    assert isinstance(found[0], Pixels)
    assert found[0].array.dtype == np.uint8
    assert found[1] is None
    told = [str(found[i]) for i in (2, 4, 5, 6, 7)]
    assert all(isinstance(found[i], NotPixels) for i in (2, 3, 4, 5, 6, 7))
    assert "16 bits: uint16" in str(found[3])
    (wide,) = pixels_of(pa.array([[[3, 2]]], pa.list_(pa.list_(pa.uint16()))), None)
    assert isinstance(wide, Pixels)
    assert wide.array.dtype == np.uint16  # by its type, however dark it is
    assert "different lengths" in told[0]
    assert "from -1" in told[1]
    assert "null" in told[2]
    assert "70000" in told[4]


def lying_footers(path: Path) -> dict[str, bytes]:
    """A good file whose footer, or whose end, tells something else."""
    good = path.read_bytes()
    size = int.from_bytes(good[-8:-4], "little")
    footer = bytearray(good[-8 - size : -8])
    shifted = bytearray(footer)
    for at in range(40, len(shifted), 7):
        shifted[at] ^= 0x55
    return {
        "long": good[:-8] + (1 << 31).to_bytes(4, "little") + b"PAR1",
        "shifted": good[: -8 - size] + bytes(shifted) + good[-8:],
        "cut": good[: len(good) // 2] + good[-8 - size :],
        "none": good[: len(good) // 2],
    }


@pytest.mark.parametrize("lie", ["long", "shifted", "cut", "none", "many rows"])
def test_a_lying_footer_costs_its_own_file(lake, tmp_path, lie: str) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name, numbers in (("a", range(10)), ("b", range(10, 20)), ("c", range(20, 30))):
        pq.write_table(pa.table({"image": image_bytes(numbers)}), folder / f"{name}.parquet")
    if lie == "many rows":
        # A column of nothing, ten million rows of it in a few hundred bytes.
        nothing = pa.table({"image": pa.nulls(10_000_000, pa.binary())})
        pq.write_table(nothing, folder / "b.parquet", compression="zstd", row_group_size=10_000_000)
        assert (folder / "b.parquet").stat().st_size < 100_000
    else:
        bad = lying_footers(folder / "b.parquet")[lie]
        (folder / "b.parquet").write_bytes(bad)
    report = runner.run(InlineStage(lake, folder, max_refused=0.5))
    assert staged_ids(lake) == set(image_ids([*range(10), *range(20, 30)]))
    assert report.counts["files_refused"] == 1
    (told,) = staged_rows(lake, "source_uri, source_row, reason", "quarantine")
    assert told["source_uri"].endswith("b.parquet")
    assert told["source_row"] == -1


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(lake, tmp_path) -> None:
    write_files(tmp_path / "s[1]", {"a.png": image_bytes([0])[0]})
    assert runner.run(InlineStage(lake, tmp_path / "s[1]")).counts["staged"] == 1


def test_a_link_to_a_folder_does_not_lead_in_circles(lake, tmp_path) -> None:
    write_files(tmp_path / "s", {"a/1.png": image_bytes([0])[0]})
    (tmp_path / "s" / "a" / "loop").symlink_to(tmp_path / "s")
    assert runner.run(InlineStage(lake, tmp_path / "s")).counts["rows_in"] == 1


def test_other_stores_that_fsspec_reaches_are_sources(lake) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    root = "/latentlake-test"
    for number, data in enumerate(image_bytes(range(4))):
        fs.pipe(f"{root}/files/label=x/{number}.png", data)
    table = io.BytesIO()
    pq.write_table(pa.table({"image": image_bytes(range(10, 20))}), table)
    fs.pipe(f"{root}/tables/a.parquet", table.getvalue())
    try:
        runner.run(InlineStage(lake, f"memory:/{root}/files"))
        runner.run(InlineStage(lake, f"memory:/{root}/tables/*.parquet", rows_per_unit=4))
        assert staged_ids(lake) == set(image_ids([*range(4), *range(10, 20)]))
        assert runner.run(InlineStage(lake, f"memory:/{root}/files")).units == 0
        fs.rm(f"{root}/files/label=x/0.png")
        fs.pipe(f"{root}/files/label=x/1.png", image_bytes([7])[0])
        runner.run(InlineStage(lake, f"memory:/{root}/files", "2026-01-02", max_removed=1.0))
        wanted = image_ids([2, 3, 7, *range(10, 20)])
        assert staged_ids(lake) == set(wanted)
    finally:
        fs.rm(root, recursive=True)
    with pytest.raises(InputError, match="scheme 'nonsense' is not supported"):
        runner.run(InlineStage(lake, "nonsense://x"))
    with pytest.raises(InputError, match="does not exist"):
        runner.run(InlineStage(lake, "memory://nowhere"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_whole(name: FormatName) -> None:
    """What stage asks of it is there, and its endings are its own."""
    found = format_of(name)
    assert isinstance(found.LOOKS_INSIDE, bool)
    assert callable(found.look)
    assert callable(found.read)
    assert {recognise(f"s3://b/x.{ending}") for ending in FORMATS[name].endings} == {name}
    assert name in get_args(FormatName)
    assert len(FORMATS) == len(get_args(FormatName))

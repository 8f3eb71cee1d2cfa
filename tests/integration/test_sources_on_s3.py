"""Sources on a real S3 server: pages of a listing, one request a file, pins by etag, odd keys."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.engine import runner
from jobs.lake import storage
from jobs.lake.paths import LakePaths
from jobs.sources.listing import list_files
from jobs.sources.pinned_read import SourceChanged, open_pinned, read_pinned
from tests.fault_proxy import FaultProxy, Rule, fault_proxy
from tests.helpers import S3Server, image_bytes, image_ids, staged_ids
from tests.inline import InlineStage
from tests.s3_server import forget_clients

pytestmark = pytest.mark.integration


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Every client of the test goes through it, so that requests can be counted."""
    with fault_proxy(s3_server.endpoint) as running:
        settings = s3_server.environment() | {"AWS_ENDPOINT_URL": running.endpoint}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        forget_clients()
        yield running
        forget_clients()


@pytest.fixture
def bucket(s3_server: S3Server, proxy: FaultProxy) -> str:
    return f"lake/src-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def fs(s3_server: S3Server):
    key, secret = s3_server.pipeline
    return fsspec.filesystem(
        "s3", key=key, secret=secret, endpoint_url=s3_server.endpoint, skip_instance_cache=True
    )


def put(fs, folder: str, names: list[str], numbers) -> None:
    fs.pipe({f"{folder}/{n}": d for n, d in zip(names, image_bytes(numbers), strict=True)})


def about(proxy: FaultProxy, since: int, folder: str) -> list[tuple[str, str]]:
    """Method and kind of the requests that were about a source."""
    prefix = folder.split("/", 1)[1]
    found = []
    for seen in proxy.requests[since:]:
        if prefix in seen.path or prefix in seen.query:
            kind = "list" if "list-type=2" in seen.query else "object"
            found.append((seen.method, kind))
    return found


def test_a_folder_of_files_costs_one_request_each_and_a_rerun_one_listing(
    proxy, bucket, fs, lake
) -> None:
    put(fs, bucket, [f"label={i % 3}/{i:03}.png" for i in range(60)], range(60))
    put(fs, bucket + "2", ["other.png"], [99])  # a prefix of a name is not a folder
    start = len(proxy.requests)
    runner.run(InlineStage(lake, f"s3://{bucket}"))
    assert staged_ids(lake) == set(image_ids(range(60)))
    requests = about(proxy, start, bucket)
    assert requests.count(("GET", "object")) == 60
    assert requests.count(("GET", "list")) == 1
    assert len(requests) == 61
    start = len(proxy.requests)
    assert runner.run(InlineStage(lake, f"s3://{bucket}")).units == 0
    assert about(proxy, start, bucket) == [("GET", "list")]


def test_a_listing_of_several_pages_comes_page_by_page(proxy, bucket, fs) -> None:
    names = [f"{i:05}.png" for i in range(1100)]
    fs.pipe({f"{bucket}/{name}": b"x" for name in names})
    files = list_files(f"s3://{bucket}")
    start = len(proxy.requests)
    assert next(files).uri.endswith("00000.png")
    assert len(proxy.requests) - start == 1  # the first file is there before the second page
    rest = [file.uri.rsplit("/", 1)[-1] for file in files]
    assert rest == names[1:]
    assert len(proxy.requests) - start == 2


def test_odd_keys_and_patterns(bucket, fs, lake) -> None:
    names = ["a b.png", "ü%20.png", "x#y?.png", "t=1/z+.png", "t=1/deep/q.png", "[1].png"]
    put(fs, bucket, names, range(6))
    runner.run(InlineStage(lake, f"s3://{bucket}"))
    assert staged_ids(lake) == set(image_ids(range(6)))
    assert runner.run(InlineStage(lake, f"s3://{bucket}")).units == 0
    other = LakePaths(lake.uri + "2")
    runner.run(InlineStage(other, f"s3://{bucket}/t=1/*.png"))
    assert staged_ids(other) == set(image_ids([3]))
    third = LakePaths(lake.uri + "3")
    runner.run(InlineStage(third, f"s3://{bucket}/**/q.png"))
    assert staged_ids(third) == set(image_ids([4]))


def test_archives_and_nested_parquet(bucket, fs, lake) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, data in enumerate(image_bytes(range(20))):
            for name, body in ((f"{number}.png", data), (f"{number}.cls", b"7")):
                info = tarfile.TarInfo(name)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    fs.pipe(f"{bucket}/tars/a.tar", buffer.getvalue())
    runner.run(InlineStage(lake, f"s3://{bucket}/tars"))
    assert staged_ids(lake) == set(image_ids(range(20)))
    table = io.BytesIO()
    rows = [{"photo": {"bytes": data}} for data in image_bytes(range(10, 30))]
    pq.write_table(pa.table({"sample": rows}), table, row_group_size=7)
    fs.pipe(f"{bucket}/tables/a.parquet", table.getvalue())
    report = runner.run(
        InlineStage(lake, f"s3://{bucket}/tables", image_column="sample.photo", rows_per_unit=6)
    )
    assert report.counts["duplicates"] == report.counts["staged"] == 10
    assert staged_ids(lake) == set(image_ids(range(30)))


def test_an_object_that_is_replaced_is_not_read_as_another(bucket, fs) -> None:
    uri = f"s3://{bucket}/a.bin"
    fs.pipe(uri, b"a" * 200_000)
    (file,) = list_files(uri)
    assert read_pinned(uri, file.etag, file.size) == b"a" * 200_000
    with open_pinned(uri, file.etag) as opened:
        assert opened.read(10) == b"a" * 10
    fs.pipe(uri, b"b" * 200_000)
    with pytest.raises(SourceChanged):
        read_pinned(uri, file.etag, file.size)
    with pytest.raises(SourceChanged), open_pinned(uri, file.etag) as opened:
        opened.read(10)
    (file,) = list_files(uri)
    fs.rm(uri)
    with pytest.raises(SourceChanged):
        read_pinned(uri, file.etag, file.size)


@pytest.mark.parametrize("fault", ["slow_down", "internal_error", "reset"])
def test_opening_an_object_is_tried_again(s3_server, fs, bucket, monkeypatch, fault) -> None:
    """Its size is requested by a request of its own, before any range."""
    uri = f"s3://{bucket}/a.bin"
    fs.pipe(uri, b"a" * 1000)
    (file,) = list_files(uri)
    rule = Rule(fault, only=lambda method, path, _: method == "HEAD", count=2)
    with fault_proxy(s3_server.endpoint, [rule]) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        forget_clients()
        with open_pinned(uri, file.etag) as opened:
            assert opened.read() == b"a" * 1000
        assert faulty.injected == {fault: 2}
    forget_clients()


def test_an_object_replaced_between_two_ranges_is_noticed(bucket, fs, monkeypatch) -> None:
    uri = f"s3://{bucket}/a.bin"
    fs.pipe(uri, b"a" * 300_000)
    (file,) = list_files(uri)
    client, _ = storage.filesystem(uri)
    monkeypatch.setattr(client, "default_block_size", 5 * 2**10)
    with open_pinned(uri, file.etag) as opened:
        assert opened.read(1000) == b"a" * 1000
        fs.pipe(uri, b"b" * 300_000)
        opened.seek(290_000)
        with pytest.raises(SourceChanged):
            opened.read(1000)


def test_removed_and_replaced_objects(bucket, fs, lake) -> None:
    put(fs, bucket, ["a.png", "b.png", "c.png"], range(3))
    runner.run(InlineStage(lake, f"s3://{bucket}"))
    fs.rm(f"{bucket}/a.png")
    put(fs, bucket, ["b.png"], [7])
    report = runner.run(InlineStage(lake, f"s3://{bucket}", "2026-01-02", max_removed=1.0))
    assert report.counts["removed_images"] == 2
    assert staged_ids(lake) == set(image_ids([2, 7]))

"""The fault-injecting proxy: nothing changes without rules, and each fault is what it says."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import botocore.session
import fsspec
import pyarrow as pa
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from deltalake import DeltaTable, write_deltalake

from tests.fault_proxy import FaultProxy, Rule, fault_proxy, list_fails, writes
from tests.helpers import S3Server
from tests.limits import SOON_S

pytestmark = pytest.mark.integration


def s3_client(server: S3Server, endpoint: str):
    """One attempt a call, so that every fault is seen."""
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=server.pipeline[0],
        aws_secret_access_key=server.pipeline[1],
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            signature_version="s3v4",
        ),
    )


@pytest.fixture
def prefix() -> str:
    return f"proxy-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def plain(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy without rules."""
    with fault_proxy(s3_server.endpoint) as proxy:
        yield proxy


def code_of(error: ClientError) -> tuple[int, str]:
    return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]


def test_s3fs_gets_what_it_put(s3_server: S3Server, plain: FaultProxy, prefix: str) -> None:
    key, secret = s3_server.pipeline
    options = {"key": key, "secret": secret, "use_listings_cache": False}
    fs, direct = (
        fsspec.filesystem("s3", endpoint_url=url, skip_instance_cache=True, **options)
        for url in (plain.endpoint, s3_server.endpoint)
    )
    data = os.urandom(12 * 1024 * 1024 + 7)
    whole, parts = f"lake/{prefix}/whole", f"lake/{prefix}/parts"
    fs.pipe_file(whole, data, mode="create")
    fs.pipe_file(parts, data, chunksize=5 * 1024 * 1024)  # a multipart upload
    for path in (whole, parts):
        assert direct.cat_file(path) == fs.cat_file(path) == data
        assert fs.cat_file(path, start=1000, end=5_000_001) == data[1000:5_000_001]
    with pytest.raises(OSError, match="pre-conditions"):
        fs.pipe_file(whole, b"other", mode="create")
    fs.pipe_file(f"lake/{prefix}/an empty one+", b"")
    names = fs.find(f"lake/{prefix}")
    assert names == direct.find(f"lake/{prefix}")
    assert len(names) == 3
    fs.rm_file(whole)  # DELETE
    fs.rm(f"lake/{prefix}", recursive=True)  # POST
    # The server itself keeps the emptied folder for a while.
    assert not set(names) & set(direct.find(f"lake/{prefix}"))
    assert {seen.method for seen in plain.requests} >= {"GET", "PUT", "HEAD", "POST", "DELETE"}
    assert 412 in {seen.status for seen in plain.requests}
    assert all("aiobotocore" in seen.agent.lower() for seen in plain.requests)
    assert not plain.injected


def test_lists_of_several_pages(s3_server: S3Server, plain: FaultProxy, prefix: str) -> None:
    direct, client = (s3_client(s3_server, e) for e in (s3_server.endpoint, plain.endpoint))
    keys = [f"{prefix}/{number}" for number in range(5)]
    for key in keys:
        direct.put_object(Bucket="lake", Key=key, Body=b"x")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket="lake", Prefix=prefix, PaginationConfig={"PageSize": 2}
    )
    assert [item["Key"] for page in pages for item in page["Contents"]] == keys
    assert len(plain.requests) == 3


def test_deltalake_reads_what_it_wrote(s3_server: S3Server, plain: FaultProxy, prefix: str) -> None:
    rows = pa.table({"n": pa.array(range(200_000)), "s": pa.array(["x" * 40] * 200_000)})
    uri = f"s3://lake/{prefix}"
    through, direct = (
        s3_server.environment() | {"AWS_ENDPOINT_URL": endpoint}
        for endpoint in (plain.endpoint, s3_server.endpoint)
    )
    write_deltalake(uri, rows, storage_options=through)
    write_deltalake(uri, rows, mode="append", storage_options=through)
    for options in (through, direct):
        table = DeltaTable(uri, storage_options=options)
        assert table.version() == 1
        found = pa.table(table.to_pyarrow_table()).sort_by("n")
        assert found.equals(pa.concat_tables([rows, rows]).sort_by("n"))
    agents = {seen.agent for seen in plain.requests}
    assert not any("aiobotocore" in agent.lower() for agent in agents), agents
    commits = [seen for seen in plain.requests if seen.path.endswith("00001.json")]
    assert "PUT" in {seen.method for seen in commits}


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Answers with the body it got, chunked; keeps `Host` and body of every request."""
    got: list[tuple[str, bytes]] = []

    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["Host"], body))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        server.server_close()


def test_framing_keep_alive_and_host_pass_unchanged() -> None:
    counted, chunked = os.urandom(3_000_001), [os.urandom(70_000), b"b", os.urandom(200_000)]
    aws_chunked = b"5;chunk-signature=0\r\nhello\r\n0;chunk-signature=0\r\n\r\n"
    with echo_server() as (upstream, got), fault_proxy(upstream) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=SOON_S)
        local = None
        for body, headers in (
            (counted, {}),
            (iter(chunked), {"Transfer-Encoding": "chunked"}),
            (aws_chunked, {"Content-Encoding": "aws-chunked"}),
        ):
            connection.request(
                "PUT", "/a", body, headers, encode_chunked="Transfer-Encoding" in headers
            )
            answer = connection.getresponse()
            assert answer.read() == got[-1][1]
            # The first connection still stands.
            local = local or connection.sock.getsockname()
            assert connection.sock.getsockname() == local
        connection.close()
    assert [body for _, body in got] == [counted, b"".join(chunked), aws_chunked]
    assert {host for host, _ in got} == {f"127.0.0.1:{proxy.port}"}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("slow_down", (503, "SlowDown")),
        ("internal_error", (500, "InternalError")),
        ("expired", (403, "ExpiredToken")),
    ],
)
def test_errors_are_answered_and_not_forwarded(
    s3_server: S3Server, prefix: str, fault, expected
) -> None:
    with fault_proxy(s3_server.endpoint, [Rule(fault)]) as proxy:
        client = s3_client(s3_server, proxy.endpoint)
        with pytest.raises(ClientError) as caught:
            client.put_object(Bucket="lake", Key=prefix, Body=b"x" * 100_000)
        assert code_of(caught.value) == expected
        with pytest.raises(ClientError) as caught:
            client.head_object(Bucket="lake", Key=prefix)  # an answer without a body
        assert code_of(caught.value)[0] == expected[0]
        assert proxy.injected == {fault: 2}
        assert [seen.status for seen in proxy.requests] == [None, None]
    with pytest.raises(ClientError):
        s3_client(s3_server, s3_server.endpoint).head_object(Bucket="lake", Key=prefix)


def raw_get(server: S3Server, proxy: FaultProxy, key: str) -> tuple[bytes, OSError | None]:
    """All that a plain socket receives, and how the connection ended."""
    url = s3_client(server, proxy.endpoint).generate_presigned_url(
        "get_object", {"Bucket": "lake", "Key": key}
    )
    split, received = urlsplit(url), b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S) as raw:
        raw.sendall(
            f"GET {split.path}?{split.query} HTTP/1.1\r\nHost: {split.netloc}\r\n\r\n".encode()
        )
        try:
            while piece := raw.recv(65536):
                received += piece
        except ConnectionResetError as error:
            return received, error
    return received, None


@pytest.mark.parametrize("fault", ["reset", "truncated", "stall"])
def test_an_answer_cut_in_its_body(s3_server: S3Server, prefix: str, fault) -> None:
    data = os.urandom(40_000)
    s3_client(s3_server, s3_server.endpoint).put_object(Bucket="lake", Key=prefix, Body=data)
    # One that only resets or truncates waits for nothing: what it would wait is over the limit.
    seconds = 1.5 if fault == "stall" else 2 * SOON_S
    with fault_proxy(s3_server.endpoint, [Rule(fault, seconds=seconds)]) as proxy:
        started = time.monotonic()
        received, error = raw_get(s3_server, proxy, prefix)
        took_s = time.monotonic() - started
        assert proxy.injected == {fault: 1}
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Content-Length: 40000" in head
    assert body == data[:20_000]
    assert isinstance(error, ConnectionResetError) == (fault == "reset")
    assert took_s > 1.5 or fault != "stall"


def test_a_reset_write_is_not_applied_and_a_lost_answer_is(
    s3_server: S3Server, prefix: str
) -> None:
    direct = s3_client(s3_server, s3_server.endpoint)
    rules = [Rule("reset", count=1), Rule("lost_answer", count=1)]
    with fault_proxy(s3_server.endpoint, rules) as proxy:
        client = s3_client(s3_server, proxy.endpoint)

        def put(body: bytes) -> None:
            client.put_object(Bucket="lake", Key=prefix, Body=body, IfNoneMatch="*")

        with pytest.raises(Exception, match=r"reset|closed"):
            put(b"first")
        with pytest.raises(ClientError):
            direct.head_object(Bucket="lake", Key=prefix)
        with pytest.raises(Exception, match=r"reset|closed"):
            put(b"second")
        assert direct.get_object(Bucket="lake", Key=prefix)["Body"].read() == b"second"
        with pytest.raises(ClientError) as caught:
            put(b"third")
        assert code_of(caught.value) == (412, "PreconditionFailed")
        assert proxy.injected == {"reset": 1, "lost_answer": 1}


def test_which_requests_a_rule_picks(s3_server: S3Server, prefix: str) -> None:
    rules = [
        list_fails(page=2),
        Rule("slow_down", only=writes, skip=1, every=2, count=2),
        Rule("latency", only=lambda method, *_: method == "DELETE", seconds=0.5),
        Rule("expired", after_s=3600),
    ]
    with fault_proxy(s3_server.endpoint, rules) as proxy:
        client = s3_client(s3_server, proxy.endpoint)
        for number in range(8):
            with contextlib.suppress(ClientError):
                client.put_object(Bucket="lake", Key=f"{prefix}/{number}", Body=b"x")
        for _ in range(3):
            with contextlib.suppress(ClientError):
                client.list_objects_v2(Bucket="lake", Prefix=prefix)
        started = time.monotonic()
        client.delete_object(Bucket="lake", Key=f"{prefix}/0")
        assert time.monotonic() - started > 0.5
        faults = [seen.fault for seen in proxy.requests]
    assert [n for n, fault in enumerate(faults) if fault == "slow_down"] == [2, 4]
    assert faults[8:] == [None, "internal_error", None, "latency"]


def test_a_seed_picks_the_same_requests_again(s3_server: S3Server) -> None:
    def faults(seed: int) -> list[str | None]:
        with fault_proxy(s3_server.endpoint, [Rule("slow_down", probability=0.4)], seed) as proxy:
            client = s3_client(s3_server, proxy.endpoint)
            for _ in range(20):
                with contextlib.suppress(ClientError):
                    client.list_objects_v2(Bucket="lake", Prefix="nothing", MaxKeys=1)
            return [seen.fault for seen in proxy.requests]

    first = faults(3)
    assert first == faults(3)
    assert first != faults(4)
    assert 2 < first.count("slow_down") < 16

"""An HTTP proxy that stands before a real S3 server and injects faults, for tests.

Clients point AWS_ENDPOINT_URL at it. Heads and bodies pass byte by byte, `Host` included, so that
signatures stay valid. One connection to the server belongs to each connection of a client.

    with fault_proxy(server.endpoint, [Rule("slow_down", probability=0.1)], seed=3) as proxy:
        env = server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Literal
from urllib.parse import urlsplit

from tests.limits import END_S, START_S

Fault = Literal[
    "slow_down",  # 503, not forwarded
    "internal_error",  # 500, not forwarded
    "expired",  # 403, not forwarded: no request with these credentials will ever work again
    "reset",  # reads: RST in the middle of the answer's body; others: RST, not forwarded
    "truncated",  # reads: a clean close in the middle of the answer's body
    "stall",  # reads: silence in the middle of the answer's body, for `seconds`; then a close
    "lost_answer",  # the server has done it, but the client gets an RST
    "latency",  # forwarded, after `seconds`
]
ERRORS = {
    "slow_down": (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    "internal_error": (
        500,
        "Internal Server Error",
        "InternalError",
        "We encountered an internal error. Please try again.",
    ),
    "expired": (403, "Forbidden", "ExpiredToken", "The provided token has expired."),
}
PIECE = 64 * 1024
Predicate = Callable[[str, str, str], bool]  # of method, path and query


def every_request(method: str, path: str, query: str) -> bool:
    return True


def lists(method: str, path: str, query: str) -> bool:
    """ListObjectsV2."""
    return method == "GET" and "list-type=2" in query


def writes(method: str, path: str, query: str) -> bool:
    return method == "PUT"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which requests meet a fault: of those that `only` picks, the first `skip` do not, nor any
    before `after_s`; then each `every`-th does with `probability`, `count` times at most."""

    fault: Fault
    only: Predicate = every_request
    probability: float = 1.0
    count: int | None = None
    skip: int = 0
    every: int = 1
    after_s: float = 0.0
    seconds: float = 2.0


def list_fails(fault: Fault = "internal_error", *, page: int = 1, count: int | None = 1) -> Rule:
    """The `page`-th list request and those after it fail, `count` of them; None: for ever."""
    return Rule(fault, only=lists, skip=page - 1, count=count)


@dataclasses.dataclass
class Seen:
    """A request that came by; `status` is what the server answered, if it was asked."""

    method: str
    path: str
    query: str
    agent: str
    fault: str | None = None
    status: int | None = None


class FaultProxy:
    """What a test sees of a running proxy."""

    def __init__(self, upstream: str, rules: Sequence[Rule], seed: int) -> None:
        split = urlsplit(upstream)
        self.upstream = (str(split.hostname), int(split.port or 80))
        self.port = 0
        self.begin(rules, seed)

    def begin(self, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        """Anew, with other rules: nothing has been seen yet."""
        self.rules = list(rules)
        # Hears of each request before it is forwarded, and once it has been answered.
        self.watch: Callable[[Seen, bool], None] = lambda seen, answered: None
        self.requests: list[Seen] = []
        self._generator = random.Random(seed)
        self._matched: Counter[int] = Counter()  # by rule
        self._injected: Counter[int] = Counter()
        self._started = time.monotonic()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def injected(self) -> Counter[str]:
        """How often each fault was injected."""
        return Counter(seen.fault for seen in list(self.requests) if seen.fault is not None)

    def choose(self, seen: Seen) -> Rule | None:
        """The first rule that wants this request."""
        for index, rule in enumerate(self.rules):
            if not rule.only(seen.method, seen.path, seen.query):
                continue
            if rule.fault in ("truncated", "stall") and seen.method != "GET":
                continue  # other answers have no body to cut
            self._matched[index] += 1
            number = self._matched[index] - rule.skip
            if (
                number > 0
                and number % rule.every == 0
                and time.monotonic() - self._started >= rule.after_s
                and (rule.count is None or self._injected[index] < rule.count)
                and self._generator.random() < rule.probability
            ):
                self._injected[index] += 1
                return rule
        return None


@contextlib.contextmanager
def fault_proxy(upstream: str, rules: Sequence[Rule] = (), seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy on a free port of loopback, for as long as the block runs."""
    proxy = FaultProxy(upstream, rules, seed)
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: _connection(proxy, reader, writer), "127.0.0.1", 0
        )
        proxy.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        # Python 3.12 and newer wait in `wait_closed` for connections that clients keep open.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(START_S), "the proxy does not start"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(END_S)
        loop.close()


@dataclasses.dataclass(frozen=True)
class _Head:
    """The first line and the headers of a message, as they came."""

    raw: bytes

    @property
    def first(self) -> list[str]:
        return self.raw.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    @property
    def status(self) -> int:
        return int(self.first[1])

    def header(self, name: str) -> str:
        for line in self.raw.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.encode():
                return value.strip().decode("latin-1")
        return ""

    @property
    def closes(self) -> bool:
        return self.header("connection").lower() == "close"

    @property
    def expects(self) -> bool:
        """Whether the client sends its body only when the server says 100."""
        return self.header("expect").lower() == "100-continue"

    def closing(self) -> _Head:
        return _Head(self.raw.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))


@dataclasses.dataclass(frozen=True)
class _Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> _Head:
        return _Head(await self.reader.readuntil(b"\r\n\r\n"))

    def drop(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """Closes with an RST instead of a FIN."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.drop()


async def _connection(
    proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    client, server = _Stream(reader, writer), None
    try:
        server = _Stream(*await asyncio.open_connection(*proxy.upstream))
        while await _exchange(proxy, client, server):
            pass
        if not writer.transport.is_closing():
            writer.close()
            await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass  # one side has left, or the proxy ends: the other side learns by the close
    finally:
        client.drop()
        if server is not None:
            server.drop()


async def _exchange(proxy: FaultProxy, client: _Stream, server: _Stream) -> bool:
    """One request and its answer; False where the connection is over."""
    head = await client.head()
    method, target, _ = head.first
    split = urlsplit(target)
    seen = Seen(method, split.path, split.query, head.header("user-agent"))
    rule = proxy.choose(seen)
    proxy.requests.append(seen)
    if rule is None:
        proxy.watch(seen, False)
        goes_on = await _forward(client, server, head, seen)
        proxy.watch(seen, True)
        return goes_on
    seen.fault = rule.fault
    if rule.fault in ERRORS:
        return await _refuse(client, head, seen, rule.fault)
    if rule.fault == "reset" and method != "GET":
        client.reset()
        return False
    if rule.fault == "latency":
        await asyncio.sleep(rule.seconds)
    return await _forward(client, server, head, seen, rule.seconds)


async def _refuse(client: _Stream, head: _Head, seen: Seen, fault: str) -> bool:
    """Answers in the server's stead, once the body is in."""
    if not head.expects:
        async for _ in _request_body(client.reader, head):
            pass
    status, phrase, code, message = ERRORS[fault]
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}'
        f"</Message><Resource>{seen.path}</Resource><RequestId>0</RequestId></Error>"
    ).encode()
    if seen.method == "HEAD":
        body = b""
    answer = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    await client.send((_Head(answer).closing().raw if head.expects else answer) + body)
    return not (head.closes or head.expects)


async def _forward(
    client: _Stream, server: _Stream, head: _Head, seen: Seen, stall_s: float = 0.0
) -> bool:
    await server.send(head.raw)
    # At the same time as the answer is awaited: the server may refuse without reading it all.
    pump = asyncio.create_task(_pump(client, server, head))
    try:
        answer, waits = await server.head(), head.expects
        while answer.status == 100:
            waits = False
            await client.send(answer.raw)
            answer = await server.head()
        seen.status = answer.status
        # Time to notice that the last piece has gone out.
        await asyncio.wait([pump], timeout=0.0 if waits else 1.0)
        whole = pump.done()
        answer = answer if whole else answer.closing()
        body = _answer_body(server.reader, seen.method, answer)
        if seen.fault in ("reset", "truncated", "stall", "lost_answer"):
            await _spoil(client, answer, [piece async for piece in body], seen, stall_s)
            return False
        await client.send(answer.raw)
        async for piece in body:
            await client.send(piece)
        return whole and not head.closes and not answer.closes
    finally:
        pump.cancel()


async def _pump(client: _Stream, server: _Stream, head: _Head) -> None:
    """The request's body, from the client to the server."""
    try:
        async for piece in _request_body(client.reader, head):
            await server.send(piece)
    except asyncio.IncompleteReadError:
        server.drop()  # the client has left; the server must not take the part for the whole
    except OSError:
        pass  # the server has had enough; its answer says why


async def _spoil(
    client: _Stream, answer: _Head, body: list[bytes], seen: Seen, stall_s: float
) -> None:
    """The head and half of the body, or nothing at all; then the end."""
    data = b"".join(body)
    if seen.fault == "lost_answer":
        client.reset()
        return
    if not data:
        seen.fault = None  # nothing to cut; told whole, and not counted
        await client.send(answer.raw)
        return
    await client.send(answer.raw + data[: len(data) // 2])
    if seen.fault == "reset":
        await asyncio.sleep(0.05)  # an RST overtakes what the client has not read yet
        client.reset()
    if seen.fault == "stall":
        await asyncio.sleep(stall_s)


def _request_body(reader: asyncio.StreamReader, head: _Head) -> AsyncIterator[bytes]:
    if head.header("transfer-encoding").lower() == "chunked":
        return _chunks(reader)
    return _counted(reader, int(head.header("content-length") or 0))


def _answer_body(reader: asyncio.StreamReader, method: str, head: _Head) -> AsyncIterator[bytes]:
    if method == "HEAD" or head.status in (204, 304):
        return _counted(reader, 0)
    if head.header("transfer-encoding").lower() == "chunked":
        return _chunks(reader)
    if not head.header("content-length"):
        return _to_the_end(reader)
    return _counted(reader, int(head.header("content-length")))


async def _counted(reader: asyncio.StreamReader, left: int) -> AsyncIterator[bytes]:
    while left:
        piece = await reader.read(min(left, PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """A chunked body as it is on the wire, sizes and trailers included."""
    while True:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        async for piece in _counted(reader, size + 2):
            yield piece
    while line != b"\r\n":
        line = await reader.readuntil(b"\r\n")
        yield line


async def _to_the_end(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(PIECE):
        yield piece

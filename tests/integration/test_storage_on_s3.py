"""The verbs of `jobs.lake.storage` on a real S3 server: one fault does nothing to any of them."""

from __future__ import annotations

import os
import time
import types
import uuid
from collections.abc import Callable, Iterator

import pytest

from jobs.errors import AlreadyThere, InputError
from jobs.lake import storage
from jobs.lake.replace import replace
from tests.fault_proxy import Fault, Rule, fault_proxy
from tests.helpers import S3Server
from tests.s3_server import forget_clients

pytestmark = pytest.mark.integration

DATA = os.urandom(300_000)


@pytest.fixture
def folder(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URI of its own with an object `there`, seen directly."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    # No need to wait before another attempt.
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: None)
    monkeypatch.setattr(storage, "time", clock)
    forget_clients()
    uri = f"s3://lake/verbs-{uuid.uuid4().hex[:8]}"
    storage.create(f"{uri}/there", DATA)
    yield uri
    forget_clients()


def _read_opened(uri: str) -> bytes:
    with storage.open_input(uri) as file:
        return file.read()


def _created(folder: str) -> bytes:
    storage.create(f"{folder}/new", DATA)
    return storage.read(f"{folder}/new")


def _deleted(folder: str) -> bytes | None:
    storage.delete_tree(folder)
    return storage.read_if_there(f"{folder}/there")


VERBS: dict[str, tuple[Callable[[str], object], object, tuple[str, ...]]] = {
    # What to do in the folder, what it returns, and the methods of its requests.
    "create": (_created, DATA, ("PUT",)),
    "create_or_keep": (lambda f: storage.create_or_keep(f"{f}/new", DATA), True, ("PUT",)),
    "keep": (lambda f: storage.create_or_keep(f"{f}/there", b"new"), False, ("PUT",)),
    "read": (lambda f: storage.read(f"{f}/there"), DATA, ("HEAD", "GET")),
    "read_if_there": (lambda f: storage.read_if_there(f"{f}/nothing"), None, ("HEAD", "GET")),
    "exists": (lambda f: storage.exists(f"{f}/nothing"), False, ("HEAD", "GET")),
    "list_folder": (lambda f: len(storage.list_folder(f)), 1, ("GET",)),
    "delete_tree": (_deleted, None, ("GET", "POST")),
    "open_input": (
        lambda f: storage.attempt(lambda: _read_opened(f"{f}/there"), f, "read"),
        DATA,
        ("HEAD", "GET"),
    ),
}
TRANSIENT: list[Fault] = ["slow_down", "internal_error", "reset", "truncated", "lost_answer"]


@pytest.mark.parametrize("fault", TRANSIENT)
@pytest.mark.parametrize("verb", VERBS)
def test_one_fault_passes_unnoticed(
    folder: str, monkeypatch: pytest.MonkeyPatch, verb: str, fault: Fault
) -> None:
    act, expected, methods = VERBS[verb]
    injected = 0
    for method in methods:
        rules = [Rule(fault, only=lambda m, *_, wanted=method: m == wanted, count=1)]
        with fault_proxy(os.environ["AWS_ENDPOINT_URL"], rules) as proxy:
            with monkeypatch.context() as through:
                through.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
                forget_clients()
                assert act(folder) == expected
            injected += proxy.injected[fault]
        forget_clients()
        if verb in ("create", "create_or_keep"):
            storage.delete_tree(f"{folder}/new")
        if verb == "delete_tree":
            storage.create(f"{folder}/there", DATA)
    assert injected or fault == "truncated"  # which only answers to GET can be


def test_a_put_is_create_only(folder: str) -> None:
    with pytest.raises(AlreadyThere):
        storage.create(f"{folder}/there", b"other")
    assert storage.create_or_keep(f"{folder}/there", b"other") is False
    assert storage.read(f"{folder}/there") == DATA


def test_a_large_put_whose_last_answer_is_lost(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(101 * 1024 * 1024)  # s3fs sends it in parts
    rules = [Rule("lost_answer", lambda m, _, query: m == "POST" and "uploadId" in query, count=1)]
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], rules) as proxy:
        with monkeypatch.context() as through:
            through.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            forget_clients()
            storage.create(f"{folder}/large", data)
        assert proxy.injected == {"lost_answer": 1}
    forget_clients()
    assert storage.read(f"{folder}/large") == data
    with pytest.raises(AlreadyThere):
        storage.create(f"{folder}/large", data[:-1] + b"?")


def test_expired_credentials_are_not_tried_again(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], [Rule("expired")]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()
        with pytest.raises(InputError, match="access denied"):
            storage.read(f"{folder}/there")
        assert len(proxy.requests) == 1


def test_a_derived_file_takes_the_place_of_the_old_one(folder: str) -> None:
    for data in (DATA, b"shorter"):
        replace(f"{folder}/report.html", data)
        assert storage.read(f"{folder}/report.html") == data

"""Bytes at URIs: local disk and S3 behind one small set of verbs.

Every put is create-only and atomic: an object is there whole, or not at all, and is never
replaced. Waits are bounded, faults are retried a few times, and errors say what to change.
Credentials come from the environment or the usual AWS files, and are never shown.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote_to_bytes, urlsplit

import fsspec

from jobs.errors import AlreadyThere, InputError, LatentlakeError, RejectedInput
from jobs.lake import local_files
from jobs.lake.root_guard import hold, is_held, require_held
from jobs.lake.storage_errors import chain, explain, is_transient, raise_if_no_bucket
from jobs.lake.uri import is_inner, refuse_credentials

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 15
ATTEMPTS = 3
PATIENCE_S = 20  # after this long no further attempt is made, so that errors come within a minute
SCHEMES = ("file", "s3")
# Of sources: stores that a client is made for without a connection. Each needs its fsspec package.
READ_ONLY_SCHEMES = ("gs", "gcs", "az", "abfs", "abfss", "http", "https", "hf", "memory")
_ODD = frozenset("%?#")  # what makes a URI more than its path

T = TypeVar("T")


def resolve_source(uri: str) -> str:
    """Like `resolve_uri`, for what is only read: also the object stores that fsspec reaches."""
    refuse_credentials(uri)
    scheme, mark, _ = uri.partition("://")
    if not mark or scheme in SCHEMES:
        return resolve_uri(uri)
    known = (*SCHEMES, *READ_ONLY_SCHEMES)
    if scheme not in known:
        raise InputError(f"{uri}: scheme {scheme!r} is not supported; use {', '.join(known)}")
    try:
        fs, path = filesystem(uri)
    except ImportError as error:
        raise InputError(f"{uri}: {error}") from error
    # However it is spelt: one file has one URI.
    whole = str(fs.unstrip_protocol(path)).rstrip("/")
    return resolve_uri(Path(path).as_uri()) if whole.startswith(("file:", "local:")) else whole


def resolve_uri(uri: str) -> str:
    """Return an absolute URI without a trailing slash; plain paths become `file:///…`.

    Raises InputError for one that cannot be used, or that has credentials in it.
    """
    refuse_credentials(uri)
    scheme = urlsplit(uri).scheme
    if scheme == "" or len(scheme) == 1:
        return Path(uri).expanduser().absolute().as_uri().rstrip("/")
    if scheme == "file":
        # However it is spelt: one file has one URI.
        path = Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))
        return path.absolute().as_uri().rstrip("/")
    if scheme not in SCHEMES:
        raise InputError(f"{uri}: scheme {scheme!r} is not supported; use {', '.join(SCHEMES)}")
    if scheme == "s3" and not urlsplit(uri).netloc:
        raise InputError(f"{uri}: no bucket; write s3://BUCKET/PREFIX")
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Return what lies below `uri`. Raises InputError for a part that leads out of it, or may.

    Parts are names that stand in a lake, and a lake may have been written by anybody.
    """
    for part in parts:
        if not is_inner(part):
            raise InputError(f"{uri}: {part!r} stands in the lake as a name, and is none of a file")
    return "/".join([uri.rstrip("/"), *parts])


def local_path(uri: str) -> Path | None:
    """Return the path of a `file:` URI; None for any other."""
    name = local_name(uri)
    return Path(name) if name is not None else None


def local_name(uri: str) -> str | None:
    """Return the same as text: of a path, a source may have millions."""
    if uri.startswith("file:///") and not _ODD.intersection(uri):
        return uri[7:]
    split = urlsplit(uri)
    return os.fsdecode(unquote_to_bytes(split.path)) if split.scheme == "file" else None


@functools.cache
def _filesystem(scheme: str, process: int) -> fsspec.AbstractFileSystem:
    # Keyed by process: an event loop does not survive a fork.
    if scheme == "file":
        return fsspec.filesystem("file", skip_instance_cache=True)
    if scheme != "s3":
        return fsspec.filesystem(scheme, use_listings_cache=False)
    config = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    s3 = fsspec.filesystem(
        "s3",
        config_kwargs=config,
        client_kwargs={"region_name": _region()},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    s3.retries = 1  # `attempt` retries
    return s3


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec filesystem of a resolved URI, and the path within it."""
    path = local_path(uri)
    if path is not None:
        return _filesystem("file", os.getpid()), str(path)
    # By hand: in a key, '?' and '#' are characters like any other.
    scheme, _, path_in_store = uri.partition("://")
    fs = _filesystem(scheme, os.getpid())
    return fs, path_in_store if scheme == "s3" else str(fs._strip_protocol(uri))


@functools.cache
def _aws_session() -> Any:
    import botocore.session  # the loader runs where there is no S3

    return botocore.session.get_session()


def _region() -> str:
    named = os.environ.get("AWS_REGION") or _aws_session().get_config_variable("region")
    return str(named or "us-east-1")


def delta_options(uri: str) -> dict[str, str]:
    """Bounds and credentials for deltalake's own S3 client.

    The credentials are those that botocore finds, so that both clients always use the same ones:
    deltalake's own search passes over the AWS files and asks the instance metadata service even
    where that is switched off. They go to the client and nowhere else.
    """
    if local_path(uri) is not None:
        return {}
    found = _aws_session().get_credentials()
    if found is None:
        raise InputError(
            f"no S3 credentials for {uri}: unable to locate credentials in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the AWS files"
        )
    frozen = found.get_frozen_credentials()
    token = {"aws_session_token": frozen.token} if frozen.token else {}
    return {
        "aws_access_key_id": frozen.access_key,
        "aws_secret_access_key": frozen.secret_key,
        "aws_region": _region(),
        **token,
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "timeout": f"{READ_TIMEOUT_S}s",
        "max_retries": "1",
        "retry_timeout": f"{READ_TIMEOUT_S}s",
    }


def attempt(action: Callable[[], T], uri: str, verb: str) -> T:
    """Run a storage action with bounded retries; raises LatentlakeError, or AlreadyThere."""
    deadline = time.monotonic() + PATIENCE_S
    for left in reversed(range(ATTEMPTS)):
        try:
            return action()
        except (AlreadyThere, LatentlakeError, RejectedInput):
            raise
        except Exception as error:
            # Clients raise several unrelated families of exceptions; this is the edge that
            # turns them into ours.
            if left == 0 or time.monotonic() > deadline or not is_transient(error):
                raise explain(error, uri, verb) from error
            time.sleep(random.uniform(0.2, 1.0) * (ATTEMPTS - left))
    raise AssertionError("unreachable")


def create(uri: str, data: bytes | memoryview) -> None:
    """Put `data` at `uri`, whole or not at all. Raises AlreadyThere; the old object stays.

    On S3 an old object that holds the very same bytes counts as put by this call.
    """
    path, tries = local_path(uri), 0

    def action() -> None:
        nonlocal tries
        tries += 1
        try:
            if path is None:
                _create_remote(uri, data)
            else:
                local_files.create(path, data)
        except AlreadyThere:
            # A first try may have landed although its answer was lost; on S3 that may be one
            # that we know nothing of, as aiohttp sends a PUT again by itself.
            if (path is not None and tries == 1) or data != read(uri):
                raise

    attempt(action, uri, "write")


def _create_remote(uri: str, data: bytes | memoryview) -> None:
    fs, path = filesystem(uri)
    try:
        fs.pipe_file(path, bytes(data), mode="create")
    except FileExistsError as error:
        raise AlreadyThere(uri) from error
    except Exception as error:
        # s3fs makes an OSError with only the message of it; the code is in the cause.
        if any("preconditionfailed" in f"{type(e).__name__}{e}".lower() for e in chain(error)):
            raise AlreadyThere(uri) from error
        raise


def create_or_keep(uri: str, data: bytes) -> bool:
    """Like `create`, but an object that is there is kept. True where this call created it."""
    try:
        create(uri, data)
    except AlreadyThere:
        return False
    return True


def read(uri: str) -> bytes:
    """Raise InputError where the object does not exist."""
    fs, path = filesystem(uri)
    return attempt(lambda: cast(bytes, fs.cat_file(path)), uri, "read")


def read_if_there(uri: str) -> bytes | None:
    """Read a file; None where there is none."""
    fs, path = filesystem(uri)

    def action() -> bytes | None:
        try:
            return cast(bytes, fs.cat_file(path))
        except FileNotFoundError as error:
            raise_if_no_bucket(error)
            return None

    return attempt(action, uri, "read")


def exists(uri: str) -> bool:
    """Whether there is a file."""
    fs, path = filesystem(uri)
    return attempt(lambda: bool(fs.exists(path)), uri, "read")


def begin(uri: str) -> None:
    """Begin a job of this process on a lake: a local one that goes away stays away."""
    path = local_path(uri)
    if path is not None:
        hold(path)


def hold_new(uri: str) -> None:
    """Guard a lake that this job has made."""
    path = local_path(uri)
    if path is not None and not is_held(path):
        hold(path)


def require_begun(uri: str) -> None:
    """Raise StorageError where the local lake that `uri` lies in has gone since `begin`."""
    path = local_path(uri)
    if path is not None:
        attempt(lambda: require_held(path), uri, "write")


def list_folder(uri: str) -> list[dict[str, Any]]:
    """Entries right below `uri` (name, size, type and what else is known); empty if absent."""
    local = local_path(uri)
    if local is not None:
        found = attempt(lambda: local_files.scan(local), uri, "list")
        return [local_files.described(each) for each in found]
    fs, path = filesystem(uri)

    def action() -> list[dict[str, Any]]:
        try:
            entries = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise_if_no_bucket(error)
            return []
        # A folder's own marker object is not one of its entries.
        return [e for e in entries if e["name"].rstrip("/") != path.rstrip("/")]

    return attempt(action, uri, "list")


def names_in(uri: str) -> list[str]:
    """Names of the files and folders right below `uri`."""
    return [str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in list_folder(uri)]


def folder_names(uri: str) -> list[str]:
    """Names of the folders right below `uri`, sorted; less those that we would not write."""
    entries = (entry for entry in list_folder(uri) if entry["type"] == "directory")
    return sorted(filter(is_inner, (e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries)))


def delete_tree(uri: str) -> None:
    """Remove everything below `uri`; what is not there needs no removing."""
    local = local_path(uri)
    fs, path = filesystem(uri)

    def action() -> None:
        if local is not None:
            local_files.delete_tree(local)
            return
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    attempt(action, uri, "delete")


def delete(uri: str) -> None:
    """Remove one object; what is not there needs no removing."""
    fs, path = filesystem(uri)

    def action() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

    attempt(action, uri, "delete")


@contextlib.contextmanager
def open_input(uri: str) -> Iterator[BinaryIO]:
    """Open a seekable file for readers such as pyarrow's; reads in blocks, not the whole object.

    Faults come out as the client raises them: wrap what is done with it in `attempt`.
    """
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as file:
        yield file  # type: ignore[misc]

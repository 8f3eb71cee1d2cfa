"""JSON that lies in a lake, read as what it must be: anybody who may write there may write it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from jobs.errors import InputError, LatentlakeError

T = TypeVar("T")
MEND = "nothing was done with it; whoever wrote the lake has to mend it"


class Unreadable(InputError):
    """A document that was cut off, or says what none of its kind says: as if it were not there."""


def parsed(kind: type[T], data: bytes | str, uri: str, remedy: str = MEND) -> T:
    """Read a document as a kind: a dataclass, a dict.

    Raises Unreadable that names its place, what is wrong with it, and the remedy.
    """
    with _told(uri, remedy):
        return _adapter(kind).validate_json(data)


def checked(kind: type[T], value: Any, uri: str, remedy: str = MEND) -> T:
    """Check what has been read already in the same way."""
    with _told(uri, remedy):
        return _adapter(kind).validate_python(value)


def json_column(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a column of `catalog/runs` that holds a JSON object."""
    return parsed(dict[str, Any], row[name], f"{name} of {row['job_id']} in catalog/runs")


@contextlib.contextmanager
def reading(uri: str, remedy: str = MEND) -> Iterator[None]:
    """Report what goes wrong within as damage of what lies there."""
    try:
        yield
    except LatentlakeError:
        raise
    except Exception as error:
        # Readers of foreign bytes fail in many ways.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise damaged(uri, reason, remedy) from error


@contextlib.contextmanager
def _told(uri: str, remedy: str) -> Iterator[None]:
    from pydantic import ValidationError  # the loader runs where it is not

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{where}: {first['msg']}" if where else first["msg"]
        raise unreadable(uri, message, remedy) from None


def unreadable(uri: str, what: str, remedy: str = MEND) -> Unreadable:
    """Make the error of a document that cannot be read, for whoever goes on without it."""
    return Unreadable(_sentence(uri, what, remedy))


def damaged(uri: str, what: str, remedy: str = MEND) -> InputError:
    """Make the error of a document that is damaged, for people."""
    return InputError(_sentence(uri, what, remedy))


def _sentence(uri: str, what: str, remedy: str) -> str:
    return f"{uri} is damaged, or not ours ({' '.join(what.split())}); {remedy}"


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)

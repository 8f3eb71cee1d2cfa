"""JSON that lies in a lake, read as what it must be: anybody who may write there may write it."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jobs.errors import InputError

T = TypeVar("T")


def parsed(kind: type[T], data: bytes, uri: str, remedy: str) -> T:
    """A document of a kind: a dataclass, a dict.

    Raises InputError that names its place, what is wrong with it, and the remedy.
    """
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise damaged(uri, told, remedy) from None


def damaged(uri: str, what: str, remedy: str) -> InputError:
    return InputError(f"{uri} is damaged, or not ours ({what}); {remedy}")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

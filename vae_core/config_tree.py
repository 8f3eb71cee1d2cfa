"""Frozen configs as plain JSON values and back, strict about keys and values."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class ConfigTree:
    """Strict conversion between a frozen dataclass and plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; `from_dict` gives the same config back."""
        return _plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raise ValueError that names a key it does not know, and lists the known ones."""
        resolved = typing.get_type_hints(cls)
        hints = {field.name: resolved[field.name] for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise ValueError(
                f"{cls.__name__}: unknown key {unknown[0]!r}; known keys: {', '.join(hints)}"
            )
        return cls(**{key: _typed(hints[key], value) for key, value in data.items()})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, ConfigTree) and isinstance(value, Mapping):
        return hint.from_dict(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if typing.get_origin(hint) is types.UnionType and isinstance(value, list):
        return tuple(value)
    return value


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_number(name: str, value: Any, like: Any) -> None:
    """Require a number of the kind that its default is."""
    kinds = int if isinstance(like, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        word = "a whole number" if kinds is int else "a number"
        raise ValueError(f"{name} must be {word}, got {value!r}")


def choice(name: str, value: str, kind: Any) -> None:
    """Raise ValueError, which lists the known values, unless `value` is one of them."""
    known = typing.get_args(kind)
    require(value in known, f"{name} is {value!r}; known: {', '.join(known)}")

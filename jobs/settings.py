"""Strict settings: from a file or a command line, with an error that names each wrong key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import InputError

Positive = Annotated[int, Field(ge=1)]


T = TypeVar("T", bound="Settings")


class Settings(BaseModel):
    """A misspelt key is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def build(kind: type[T], values: dict[str, Any]) -> T:
    """Validate settings; raises InputError that names every wrong key in a line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = []
        for issue in error.errors():
            where = ".".join(str(part) for part in issue["loc"]) or kind.__name__
            text = issue["msg"].removeprefix("Value error, ")
            if issue["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                text = f"unknown key; known: {', '.join(_known_keys(kind, issue['loc']))}"
            problems.append(f"{where}: {text}")
        raise InputError("; ".join(problems)) from error


def _known_keys(kind: Any, path: tuple[Any, ...]) -> list[str]:
    for part in path[:-1]:
        fields = kind.model_fields if hasattr(kind, "model_fields") else {}
        if part not in fields:
            break
        kind = fields[part].annotation
        # Of an optional section, what it is where it is given.
        kind = next((each for each in get_args(kind) if each is not type(None)), kind)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(kind.model_fields)


def load_yaml(path: str) -> dict[str, Any]:
    """Read a config file as a dict; raises InputError that says what is wrong with it.

    path: of a local file, or a URI.
    """
    try:
        data = yaml.safe_load(_text(path))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no mapping of settings")
    return data


def _text(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text()
    from jobs.lake.storage import read_if_there, resolve_uri  # a laptop's config needs no fsspec

    data = read_if_there(resolve_uri(path))
    if data is None:
        raise InputError(f"there is no config file {path}")
    return data.decode()

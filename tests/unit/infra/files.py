"""Reading infra/: what it holds, and its images."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
INFRA = ROOT / "infra"
_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = _PYPROJECT["project"]
PACKAGES = [
    name.removesuffix("*")
    for name in _PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
]
VERSION = PROJECT["version"]
OURS = "registry.example/latentlake"
TARGETS = ("cpu", "cuda", "aws")


def infra_files() -> list[Path]:
    """Every file there, by name; no folders, nothing hidden."""
    found = (p for p in INFRA.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in found if "__pycache__" not in p.parts)


def data_files() -> list[Path]:
    return [p for p in infra_files() if p.suffix in (".yaml", ".yml", ".json")]


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file, or the one of a JSON file."""
    if path.suffix == ".json":
        return [json.loads(path.read_text())]
    return list(yaml.safe_load_all(path.read_text()))


def document(name: str) -> Any:
    (found,) = documents(INFRA / name)
    return found


def walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it; an index of a list counts as a key."""
    yield path, node
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, list) else items
    for key, value in items:
        yield from walk(value, (*path, str(key)))


def containers(node: Any) -> list[dict[str, Any]]:
    """What runs an image, in a manifest or in compose.yaml."""
    return [v for _, v in walk(node) if isinstance(v, dict) and isinstance(v.get("image"), str)]


def images(path: Path) -> list[str]:
    """Every image that a file names."""
    if path.name == "Dockerfile":
        lines = path.read_text()
        bases = re.findall(r"^FROM (?:--\S+ )*(\S+)", lines, re.M)
        args = dict(re.findall(r"^ARG (\w*IMAGE)=(\S*)", lines, re.M))
        stages = set(re.findall(r"^FROM .* AS (\S+)", lines, re.M))
        named = [re.sub(r"\$\{(\w+)\}", lambda m: args[m[1]], base) for base in bases]
        return [name for name in named if name not in stages]
    found = []
    for keys, value in (pair for each in documents(path) for pair in walk(each)):
        is_default = keys[-2:] == ("image", "default")
        if isinstance(value, str) and keys and (is_default or keys[-1].endswith("image")):
            found.append(value)
    return [value for value in found if not value.startswith("{{")]

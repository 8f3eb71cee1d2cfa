"""The commands that infra/ and its page run or tell to run, as words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.unit.infra.files import ROOT, containers, data_files, documents, infra_files, walk

TOOLS = ("latentlake", "prefect", "ray")
PAGES = [ROOT / "docs" / "clusters.md"]


def commands() -> list[tuple[str, list[str]]]:
    """Every command of latentlake, prefect and ray, with the file that it is in."""
    found = []
    for path in [*infra_files(), *PAGES]:
        ran = _ran(path) if path in data_files() else []
        for words in [*ran, *_told(path)]:
            name = path.relative_to(ROOT).as_posix()
            found += [(name, part) for part in _parts(words) if part[0] in TOOLS]
    return found


def words_of(container: dict[str, Any]) -> list[str]:
    """What a container runs, entrypoint and all; variables of compose as they are by default."""
    words: list[str] = []
    for part in (container.get(key) for key in ("entrypoint", "command", "args")):
        words += shlex.split(part) if isinstance(part, str) else [str(w) for w in part or []]
    return [re.sub(r"\$\{[A-Z_0-9]+:-([^}]*)\}", r"\1", word) for word in words]


def _ran(path: Path) -> Iterator[list[str]]:
    for each in documents(path):
        for container in containers(each):
            yield words_of(container)
        for _, value in walk(each):
            lines = value.splitlines() if isinstance(value, str) else []
            yield from (shlex.split(line) for line in lines if _is_command(line))


def _told(path: Path) -> Iterator[list[str]]:
    """Of a page the lines of its code blocks, of a file its comments that stand in by three."""
    if path.suffix not in (".md", ".yaml"):
        return
    text = path.read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    comments = re.findall(r"^#   (.*)", text, re.M)
    told = "".join(blocks) if path.suffix == ".md" else "\n".join(comments)
    for line in re.sub(r"\\\n\s*", "", told).splitlines():
        yield shlex.split(line, comments=True)


def _parts(words: list[str]) -> Iterator[list[str]]:
    """The command, and those that it hands on: ray exec FILE 'COMMAND'."""
    yield words or [""]
    yield from (shlex.split(word) for word in words[1:] if _is_command(word))


def _is_command(text: str) -> bool:
    return text.split(" ")[0] in TOOLS and " " in text and "\n" not in text.strip()

"""Small changes of a lake's files, as damage or a stranger makes them; the same for each seed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Doc = Any
NESTED = "[" * 5000 + "]" * 5000


class Mutation:
    """One file of a lake, changed once."""

    def __init__(self, seed: str, lake: Path, outside: Path) -> None:
        """outside: a folder beside the lake that hostile names lead to."""
        self.random = random.Random(seed)
        self.lake, self.outside = lake, outside
        files = sorted(p for p in lake.rglob("*") if p.is_file())
        documents = [p for p in files if p.suffix in (".json", ".safetensors")]
        kinds = [
            ([p for p in documents if p.relative_to(lake).parts[0] == "units"], 8),
            ([p for p in documents if "bundles" in p.parts], 5),
            ([p for p in documents if "_delta_log" in p.parts], 5),
            (files, 2),
        ]
        among = [one for one, _ in kinds]
        (among,) = self.random.choices(among, [share for _, share in kinds])
        self.file = self.random.choice(among)
        way = self._bytes
        if self.file in documents and self.random.random() < 0.85:
            way = self._tensors if self.file.suffix == ".safetensors" else self._document
        self.told = f"{self.file.relative_to(lake)}: {way()}"

    def _put(self, data: bytes) -> None:
        """In a file of its own: the lake's files may be links."""
        new = self.file.with_name(self.file.name + ".new")
        new.write_bytes(data)
        new.replace(self.file)

    def _bytes(self) -> str:
        data = bytearray(self.file.read_bytes())
        at = self.random.randrange(len(data)) if data else 0
        kind = self.random.choice(["cut", "flip", "insert", "empty"])
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] ^= 1 << self.random.randrange(8)
        elif kind == "insert":
            data[at:at] = self.random.randbytes(8)
        elif kind == "empty":
            data.clear()
        self._put(bytes(data))
        return f"{kind} at {at}"

    def _document(self) -> str:
        text = self.file.read_text()
        log = "_delta_log" in self.file.parts
        lines = text.splitlines() if log else [text]
        at = self.random.randrange(len(lines))
        doc, told = self._changed(json.loads(lines[at]))
        lines[at] = NESTED if told == "nested" else json.dumps(doc)
        self._put("\n".join(lines).encode())
        return told

    def _tensors(self) -> str:
        data = self.file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header, told = self._changed(json.loads(data[8 : 8 + size]))
        packed = NESTED.encode() if told == "nested" else json.dumps(header).encode()
        length = self.random.choice([len(packed)] * 4 + [0, 2**63, len(packed) * 1000])
        changed = length.to_bytes(8, "little") + packed + data[8 + size :]
        self._put(changed)
        self._tell_content(changed)
        return f"header: {told}, its length {length} of {len(packed)}"

    def _tell_content(self, data: bytes) -> None:
        """As a stranger would, who knows that a file's name tells its content."""
        about = self.file.with_name("model.json")
        if not about.exists() or self.random.random() < 0.2:
            return
        digest = hashlib.sha256(data).hexdigest()[:12]
        name = f"{self.file.name.split('-')[0]}-{digest}.safetensors"
        text = about.read_text().replace(self.file.name, name)
        self.file.rename(self.file.with_name(name))
        self.file = about
        self._put(text.encode())

    def _changed(self, doc: Doc) -> tuple[Doc, str]:
        """The document with one value of it changed, and what was done."""
        if self.random.random() < 0.03:
            return doc, "nested"
        places: list[tuple[Any, Any]] = []
        doc = copy.deepcopy(doc)
        _collect(doc, places)
        if not places:
            return self._value(doc), "all of it"
        holder, key = self.random.choice(places)
        old = holder[key]
        if isinstance(old, str) and old[:1] in "{[" and self.random.random() < 0.7:
            try:
                inner, told = self._changed(json.loads(old))
            except ValueError:
                pass
            else:
                holder[key] = json.dumps(inner)
                return doc, f"{key!r} > {told}"
        kind = self.random.choice(["value"] * 6 + ["gone", "twice", "renamed"])
        if kind == "gone":
            del holder[key]
        elif kind == "twice" and isinstance(holder, list):
            holder.append(copy.deepcopy(old))
        elif kind == "renamed" and isinstance(holder, dict):
            holder[str(self._value(key))] = holder.pop(key)
        else:
            holder[key] = self._value(old)
            return doc, f"{key!r} = {holder[key]!r:.80}"
        return doc, f"{key!r} {kind}"

    def _value(self, old: Any) -> Any:
        outside = self.outside.as_uri()
        away = os.path.relpath(self.outside, self.lake)
        names = [
            f"{outside}/datasets/d/images",
            f"{away}/datasets/d/images",
            f"../../{away}/a.parquet",
            f"../../../{away}/a.parquet",
            f"{outside}/a.parquet",
            str(self.outside / "a.parquet"),
            ("../../../" + away).replace("..", "%2e%2e") + "/a.parquet",
            f"../../../../../{away}/model.safetensors",
            "..", ".", "", "/", "a/b", "a\0b", "\x1b]0;owned\x07", "%", "x" * 5000, "NaN", "[]",
        ]  # fmt: skip
        numbers: list[Any] = [0, 1, -1, 2**31, -(2**31), 2**63, 10**30, 1e308, 0.5, -0.0]
        others: list[Any] = [None, True, False, [], {}, [None], {"a": 1}, [[1]], [1, "a"]]
        like = {str: names, int: numbers, float: numbers}.get(type(old), others)
        return copy.deepcopy(
            self.random.choice(self.random.choice([like, like, names, numbers, others]))
        )


def _collect(doc: Any, places: list[tuple[Any, Any]]) -> None:
    items = (
        doc.items() if isinstance(doc, dict) else enumerate(doc) if isinstance(doc, list) else ()
    )
    for key, value in items:
        places.append((doc, key))
        _collect(value, places)


def linked(source: Path, target: Path) -> None:
    """A copy of a lake, whose files are never written to but replaced."""
    link: Callable[..., Any] = os.link
    shutil.copytree(source, target, copy_function=link)

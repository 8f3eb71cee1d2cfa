"""tests/README.md names what exists: phrases of the documents, and tests of this folder."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PAGE = (TESTS / "README.md").read_text()
GUIDES = ["staging", "training", "models", "embedding", "evaluating", "judging", "tables"]
GUIDES += ["report", "operations", "clusters"]
GUARANTEED = {"README.md", "SECURITY.md", *(f"docs/{name}.md" for name in GUIDES)}


def rows() -> Iterator[tuple[str, str, str]]:
    """Document, phrase and the cell that names tests, of each row."""
    for section in PAGE.split("\n## ")[1:]:
        heading = re.match(r"`(\S+)`\n", section)
        for line in section.splitlines() if heading else ():
            found = re.fullmatch(r'\| "(.*)" \| (.*) \|', line)
            if found:
                yield heading[1], found[1], found[2]  # type: ignore[index]


ROWS = list(rows())


@functools.cache
def words_of(path: Path) -> str:
    return " ".join(path.read_text().split())


@functools.cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_document_has_its_guarantees_named() -> None:
    assert {document for document, *_ in ROWS} >= GUARANTEED
    # A row that is not understood would not be checked.
    promised, *_ = PAGE.split("## Promises without a test")
    assert len(ROWS) == len(re.findall(r'^\| "', promised, re.MULTILINE)) >= 100


@pytest.mark.parametrize(("document", "phrase", "_"), ROWS)
def test_the_document_still_says_so(document: str, phrase: str, _: str) -> None:
    assert " ".join(phrase.split()) in words_of(ROOT / document)


@pytest.mark.parametrize(("_", "phrase", "cell"), ROWS)
def test_the_tests_exist(_: str, phrase: str, cell: str) -> None:
    named = re.findall(r"`([^`]+)`", cell)
    assert named
    for name in named:
        file, _, function = name.partition("::")
        assert function in functions_of(TESTS / file), name
        assert function.startswith("test_"), name

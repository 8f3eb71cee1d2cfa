"""Seeded mutants of the modules that must not be wrong: does a test fail for each?

    python -m tests.mutants [--count 40] [--seed 0] [--only NUMBER…] [--nearest FILES]

A mutant is one small change of the code: a comparison turned, a sum made a difference, a constant
moved by one, a statement left out. It lives in a copy of the tree and meets the tests of its own
folder (`tests/unit/jobs` or `tests/unit/vae_core`), those that name its module first; the whole
suite for each would take a day. What survives is either no change in behaviour, or something that
no unit test sees.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import copy
import dataclasses
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    "plan": ("jobs/engine/plan", "jobs/engine/runner", "jobs/stage/plan", "jobs/engine/records"),
    "commit": (
        "jobs/engine/commit",
        "jobs/engine/corrections",
        "jobs/tables/delta",
        "jobs/tables/catalog",
    ),
    "stage": ("jobs/stage/job", "jobs/stage/worker", "jobs/stage/rows", "jobs/stage/reconcile"),
    "embed": (
        "jobs/embed/job",
        "jobs/embed/worker",
        "jobs/embed/reconcile",
        "jobs/embed/anomalies",
    ),
    "core": (
        "vae_core/scores/per_image",
        "vae_core/stats/conformal",
        "vae_core/objectives/objectives",
        "vae_core/noise",
    ),
}
LIMIT_S = 1200  # a mutant may hang, which is a failure, too
AROUND = ("docs", "flows", "infra", "jobs", "vae_core", "tests", ".ci")
FILES = ("pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md")
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    group: str
    path: str
    line: int
    before: str
    after: str
    source: str  # of the whole module


def mutants_of(group: str, path: str) -> list[Mutant]:
    text = (ROOT / path).read_text()
    found = []
    for node, changed in _changes(ast.parse(text)):
        before, after = ast.unparse(node), ast.unparse(changed)
        source = _replaced(text, node, after)
        found.append(Mutant(group, path, node.lineno, before, after, source))
    return found


def _replaced(text: str, node: ast.expr | ast.stmt, by: str) -> str:
    lines = text.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + (node.end_col_offset or 0)
    put = by if isinstance(node, ast.stmt) else f"({by})"
    data = text.encode()
    return (data[:start] + put.encode() + data[end:]).decode()


def _changes(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Nodes of function bodies with what takes their place; annotations and messages are left."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in function.body:
            for node in _within(statement):
                for changed in _changed(node):
                    yield node, changed


def _within(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.FunctionDef, ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant) or ast.unparse(node).startswith(("log.", "warnings."))
    ):
        return
    if isinstance(node, (ast.expr, ast.stmt)):
        yield node
    for name, held in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "slice"):
            continue
        for child in held if isinstance(held, list) else [held]:
            if isinstance(child, ast.AST):
                yield from _within(child)


def _changed(node: ast.expr | ast.stmt) -> Iterator[ast.AST]:
    changed = copy.deepcopy(node)
    if isinstance(changed, ast.Compare) and type(changed.ops[0]) in SWAPS:
        changed.ops[0] = SWAPS[type(changed.ops[0])]()  # type: ignore[assignment]
        yield changed
    elif isinstance(changed, (ast.BinOp, ast.BoolOp)) and type(changed.op) in SWAPS:
        changed.op = SWAPS[type(changed.op)]()  # type: ignore[assignment]
        yield changed
    elif isinstance(changed, ast.UnaryOp) and isinstance(changed.op, ast.Not):
        yield changed.operand
    elif isinstance(changed, ast.Constant) and isinstance(changed.value, (bool, int)):
        value = changed.value
        yield ast.Constant(not value if isinstance(value, bool) else value + 1)
    elif isinstance(changed, ast.IfExp):
        yield ast.IfExp(changed.test, changed.orelse, changed.body)
    elif (isinstance(changed, ast.Expr) and isinstance(changed.value, ast.Call)) or isinstance(
        changed, ast.AugAssign
    ):
        yield ast.Pass()


def chosen(count: int, seed: int) -> list[Mutant]:
    """As many of each group."""
    generator = random.Random(seed)
    found = []
    for group, modules in GROUPS.items():
        every = [mutant for name in modules for mutant in mutants_of(group, f"{name}.py")]
        found += generator.sample(every, count // len(GROUPS))
    return found


def survived(mutant: Mutant, nearest: int | None) -> tuple[bool, float, str]:
    """Whether every test passes; the seconds it took, and the test that failed.

    nearest: test files of the folder; all if None.
    """
    began = time.monotonic()
    folder = f"tests/unit/{mutant.path.split('/')[0]}"
    with tempfile.TemporaryDirectory(prefix="ll-mutant-", dir="/tmp") as made:
        tree = Path(made)
        for name in AROUND:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, tree)
        (tree / mutant.path).write_text(mutant.source)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [
            f"--basetemp={tree / 'tmp'}",
            *_by_nearness(tree / folder, mutant.path)[:nearest],
        ]
        env = os.environ | {"PYTHONPATH": str(tree)}
        try:
            done = subprocess.run(
                command, cwd=tree, env=env, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return False, time.monotonic() - began, "it hung"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    told = failed[0].split(" - ")[0] if failed else f"exit {done.returncode}"
    return done.returncode == 0, time.monotonic() - began, told


def _by_nearness(folder: Path, path: str) -> list[str]:
    """Its test files: of the module itself, of its room, those that name it, the others."""
    room, name = Path(path).parent.parts, Path(path).stem
    of_room = ".".join(room)
    naming = re.compile(rf"\b{of_room}\.{name}\b|\bfrom {of_room} import [^\n]*\b{name}\b")

    def distance(file: Path) -> tuple[int, int]:
        here = file.parent.relative_to(folder.parent).parts == room
        named = len(naming.findall(file.read_text()))
        if here:
            return (0 if file.stem == f"test_{name}" else 1), -named
        return (2 if named else 3), -named

    return [str(file) for file in sorted(folder.rglob("test_*.py"), key=distance)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="Numbers of the table.")
    parser.add_argument("--nearest", type=int, help="Test files each meets; all if none.")
    parser.add_argument("--at-once", type=int, default=2)
    asked = parser.parse_args()
    numbered = list(enumerate(chosen(asked.count, asked.seed), 1))
    if asked.only:
        numbered = [one for one in numbered if one[0] in asked.only]
    killed = 0
    with concurrent.futures.ThreadPoolExecutor(asked.at_once) as pool:
        running = {
            pool.submit(survived, mutant, asked.nearest): (n, mutant) for n, mutant in numbered
        }
        for done in concurrent.futures.as_completed(running):
            number, mutant = running[done]
            alive, seconds, told = done.result()
            killed += not alive
            what = f"{mutant.path}:{mutant.line} `{mutant.before}` → `{mutant.after}`"
            end = "SURVIVED" if alive else f"killed by {told}"
            sys.stdout.write(f"{number:3} {mutant.group:6} {what}: {end} ({seconds:.0f} s)\n")
            sys.stdout.flush()
    sys.stdout.write(f"killed {killed} of {len(numbered)}\n")


if __name__ == "__main__":
    main()

"""The rules of the house, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.limits import COMMAND_S

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vae_core", "jobs", "flows")
SETTINGS = sorted(path.parent.name for path in (ROOT / "jobs").glob("*/settings.py"))
MOST_MODULES = 14  # of a folder: a room is one noun


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", files("vae_core"), ids=lambda p: p.name)
def test_the_core_imports_torch_numpy_scipy_and_the_standard_library_alone(path: Path) -> None:
    # typing_extensions comes with torch.
    allowed = {"torch", "numpy", "scipy", "typing_extensions", "vae_core"}
    allowed |= set(sys.stdlib_module_names)
    assert tops(path) <= allowed


def test_a_folder_is_a_room_of_few_modules() -> None:
    for package in PACKAGES:
        rooms = Counter(path.parent for path in files(package))
        crowded = {str(room): count for room, count in rooms.items() if count > MOST_MODULES}
        assert not crowded


def test_a_class_has_its_name_alone() -> None:
    names = Counter(
        node.name
        for package in PACKAGES
        for path in files(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert len(names) > 100
    assert not {name for name, count in names.items() if count > 1}


def test_what_start_up_is_guarded_by_is_there() -> None:
    """A guard of a module that was moved would guard nothing."""
    assert {"stage", "train", "embed", "evaluate", "drift", "promote"} <= set(SETTINGS)
    for module in DESCRIBE:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_the_floors_are_kept() -> None:
    """Which package and room may import which: `tool.importlinter` in pyproject.toml."""
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stdout[-3000:]


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh process after running `code`."""
    script = f"{code}\nimport sys; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=COMMAND_S,
    )
    return set(done.stdout.splitlines()[-1].split())


DESCRIBE = (
    *(f"jobs.{room}.settings" for room in SETTINGS),
    "flows.nightly.settings",
    "jobs.schemas.catalog",
    "jobs.engine.plan",
    "jobs.lake.paths",
    "jobs.dispatch.request",
)


@pytest.mark.parametrize("module", DESCRIBE)
def test_modules_that_describe_start_without_ray_and_torch(module: str) -> None:
    assert not loaded_after(f"import {module}") & {"ray", "torch", "prefect"}


def test_query_needs_neither_prefect_nor_ray_nor_torch() -> None:
    help_page = (
        "from flows.cli.main import cli\n"
        "cli.main(['query', 'anomalies', '--help'], standalone_mode=False)"
    )
    assert not loaded_after(help_page) & {"ray", "torch", "prefect"}
    assert not loaded_after("import jobs.query.api") & {"ray", "torch", "prefect"}


@pytest.mark.parametrize(
    "code",
    [
        "from jobs.embed.job import EmbedJob; EmbedJob.worker(None)",
        "from jobs.evaluate.job import EvaluateJob; EvaluateJob.worker(None)",
        "import jobs.cluster.status_actor",
    ],
)
def test_what_only_starts_work_or_hears_of_it_needs_no_torch(code: str) -> None:
    """Each process that imports it is seconds of a core, before any work."""
    assert not loaded_after(code) & {"torch", "prefect"}


def test_the_core_and_the_loader_run_without_ray() -> None:
    loaded = loaded_after(
        "import jobs.train.data.loader, vae_core.scores.per_image, vae_core.training.step"
    )
    assert "torch" in loaded
    assert not loaded & {"ray", "prefect", "botocore", "s3fs", "deltalake", "pydantic"}


def test_no_print_and_no_pickle_in_the_product() -> None:
    for package in PACKAGES:
        for path in files(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    assert name not in {"print", "torch.load", "pickle.load", "pickle.loads"}, path
                    assert "allow_pickle" not in {k.arg for k in node.keywords}, path


def test_ruff_is_clean() -> None:
    ruff = Path(sys.executable).parent / "ruff"
    for arguments in (["check", "--no-cache", "."], ["format", "--check", "."]):
        done = subprocess.run([str(ruff), *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]

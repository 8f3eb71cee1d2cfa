"""The Dockerfile and .dockerignore, read: stages, users, copies, the lock."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.unit.infra.files import INFRA, PACKAGES, PROJECT, ROOT, TARGETS

TEXT = (INFRA / "Dockerfile").read_text()
KNOWN = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its rest), continuation lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in pairs]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage, the FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, rest in instructions(TEXT):
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            assert name not in found
        found.setdefault(name, []).append((instruction, rest))
    return found


def lineage(target: str) -> list[tuple[str, str]]:
    """Instructions of a stage after those of the stages that it is built on."""
    own = stages()[target]
    base = own[0][1].split(" AS ")[0]
    return [*(lineage(base) if base in stages() else []), *own]


def last(target: str, instruction: str) -> str:
    return [rest for name, rest in lineage(target) if name == instruction][-1]


def test_instructions_are_known() -> None:
    assert {name for name, _ in instructions(TEXT)} <= KNOWN


@pytest.mark.parametrize("target", TARGETS)
def test_the_targets_run_as_a_fixed_user_and_start_latentlake(target: str) -> None:
    uid, gid = last(target, "USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    made = [rest for name, rest in lineage(target) if name == "RUN" and "useradd" in rest]
    assert len(made) == 1
    assert f"--uid {uid} " in made[0]
    assert last(target, "ENTRYPOINT") == '["latentlake"]'
    # Nothing is installed or written after the user is named.
    names = [name for name, _ in stages()[target]]
    assert names[-2:] == ["USER", "ENTRYPOINT"]


def test_the_default_target_is_cpu() -> None:
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_the_targets_have_only_the_environment_of_their_builder(target: str) -> None:
    copies = [rest for name, rest in lineage(target) if name == "COPY"]
    (copy,) = copies
    builder, source, goal = re.fullmatch(r"--from=(\S+) (\S+) (\S+)", copy).groups()  # type: ignore[union-attr]
    assert builder in stages()
    assert source == goal == "/opt/latentlake"  # scripts name their interpreter by this path
    assert any(f"venv {source}" in rest for _, rest in lineage(builder))
    path = [rest for name, rest in lineage(target) if name == "ENV" and "PATH=" in rest]
    assert path[0].split()[0] == f"PATH={goal}/bin:$PATH"


def test_what_kuberay_and_the_launcher_call_is_installed() -> None:
    (base,) = [rest for name, rest in stages()["base"] if name == "RUN" and "apt-get" in rest]
    assert {"wget", "rsync"} <= set(base.split())
    (aws,) = [rest for name, rest in stages()["aws"] if name == "RUN"]
    assert "openssh-client" in aws.split()


@pytest.mark.parametrize("target", ["builder", "builder-aws"])
def test_packages_come_from_the_lock_with_hashes(target: str) -> None:
    pip = [rest for name, rest in lineage(target) if name == "RUN" and "pip " in rest]
    installs = [part.strip() for rest in pip for part in rest.split("&&") if "pip install" in part]
    torch, *others = installs
    assert "torch==" in torch
    hashed = [part for part in others if "--require-hashes" in part]
    assert hashed[0].endswith("-r requirements.lock")
    assert [part for part in others if part not in hashed] == [
        "pip install --no-deps /wheels/*.whl"
    ]
    assert all("--no-deps" in part for part in others)
    assert any("pip wheel --no-deps --no-build-isolation" in rest for rest in pip)


def test_torch_is_the_one_of_pyproject() -> None:
    (sed,) = re.findall(r"sed -n '([^']+)' pyproject\.toml", TEXT)
    done = subprocess.run(
        ["sed", "-n", sed, ROOT / "pyproject.toml"], capture_output=True, text=True, check=True
    )
    (pin,) = [d for d in PROJECT["dependencies"] if d.startswith("torch")]
    assert done.stdout.strip() == pin
    assert f"'{sed}'" in (ROOT / "Makefile").read_text().replace("$$", "$")


def test_torchs_index_has_no_default() -> None:
    (default,) = [rest for name, rest in instructions(TEXT) if name == "ARG" and "INDEX" in rest]
    assert default == "TORCH_INDEX="
    assert "://" not in TEXT


def locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+) \\$", (ROOT / name).read_text(), re.M))


def test_the_launchers_lock_goes_with_the_lock() -> None:
    main, extra = locked("requirements.lock"), locked("infra/requirements-aws.lock")
    assert set(extra) == {"boto3", "s3transfer"}
    assert not set(main) & set(extra)
    # boto3 1.43.N asks for botocore of 1.43, N or newer.
    ours, theirs = ([int(n) for n in v.split(".")] for v in (extra["boto3"], main["botocore"]))
    assert ours[:2] == theirs[:2]
    assert ours[2] <= theirs[2]
    assert "jmespath" in main


def test_the_python_is_the_projects() -> None:
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\S+)$", TEXT, re.M)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"][
        "pythonVersion"
    ]
    assert re.fullmatch(rf"{re.escape(wanted)}\.\d+-slim-bookworm", image)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder; the last rule that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = line.removeprefix("!").removeprefix("**/")
        parents = [str(p) for p in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
        names = [PurePosixPath(p).name for p in parents] if "**/" in line else parents
        if any(fnmatch.fnmatchcase(name, rule) for name in names):
            out = not line.startswith("!")
    return out


def copied() -> list[str]:
    rests = [rest for name, rest in instructions(TEXT) if name == "COPY" and "--from" not in rest]
    return [source for rest in rests for source in rest.split()[:-1]]


def test_what_is_copied_exists_and_is_sent() -> None:
    assert len(copied()) == 8
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "tests/conftest.py", "lake/a", ".env", "infra/env.example",
     "flows/__pycache__/cli.pyc", "requirements-dev.lock", "infra/compose.yaml"],
)  # fmt: skip
def test_what_the_builder_needs_not_stays_here(path: str) -> None:
    assert ignored(path)


def test_the_wheel_has_everything_that_is_copied() -> None:
    assert set(PACKAGES) <= set(copied())
    for needed in (PROJECT["readme"], *PROJECT["license-files"]):
        assert needed in copied()


@pytest.mark.parametrize(
    ("target", "cuda", "is_right"),
    [("cpu", None, True), ("cpu", "13.0", False), ("cuda", "13.0", True), ("cuda", None, False)],
)
def test_a_target_refuses_the_torch_of_the_other(
    tmp_path: Path, target: str, cuda: str | None, is_right: bool
) -> None:
    """The image's own check, run beside a torch that says what it is."""
    (tmp_path / "torch.py").write_text(f"class version:\n    cuda = {cuda!r}\n")
    (check,) = [rest for name, rest in stages()[target] if name == "RUN" and "torch" in rest]
    done = subprocess.run(
        shlex.split(check.replace("python", sys.executable, 1)),
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is is_right, done.stderr
    assert is_right or "TORCH_INDEX" in done.stderr


@pytest.mark.slow
def test_the_wheel_is_built_from_what_is_copied(tmp_path: Path) -> None:
    """With the very command, in a folder that has only what the builder has."""
    for source in set(copied()):
        of = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        of(ROOT / source, tmp_path / PurePosixPath(source).name)
    (build,) = [rest for name, rest in stages()["builder"] if name == "RUN" and "pip wheel" in rest]
    words = shlex.split(build.split("&&")[0].replace("/wheels", str(tmp_path / "wheels")))
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("vae_core", "jobs", "flows"):
        ours = {path.name for path in (ROOT / package).glob("*.py")}
        assert {PurePosixPath(n).name for n in names if n.split("/")[0] == package} >= ours
    assert any(name.startswith("flows/sample/") and name.endswith(".parquet") for name in names)

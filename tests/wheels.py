"""latentlake as a wheel, and installed from one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.helpers import ROOT


def wheel_of(folder: Path, version: str | None = None) -> Path:
    """Built from a copy of the project, as `make wheel` builds it."""
    tree = folder / "tree"
    for name in ("vae_core", "jobs", "flows"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    project = tree / "pyproject.toml"
    if version is not None:
        text = project.read_text()
        text, found = re.subn(
            r'^version = ".*"', f'version = "{version}"', text, flags=re.MULTILINE
        )
        assert found == 1
        project.write_text(text)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder / "dist", tree], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def installed(wheel: Path, folder: Path) -> Path:
    """The `latentlake` of a new environment; what it needs is taken from this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Not what stands in this one's .pth files: the editable project is one of them.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--force-reinstall"]
    subprocess.run([*install, *options, wheel], check=True)
    return folder / "bin" / "latentlake"

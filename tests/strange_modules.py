"""Modules that lie in somebody's folder and have names that processes of ours import."""

from __future__ import annotations

from pathlib import Path

# Of us, of Ray, of Prefect and its server, of what these import when it is there.
NAMES = ("jobs", "flows", "vae_core", "tests", "torch", "numpy", "ray", "prefect", "h2", "yaml")
CODE = "open({told!r}, 'a').write(__name__ + '\\n'); raise ImportError('a stranger wrote this')\n"


def write_modules(folder: Path) -> None:
    """Each tells when it is imported."""
    code = CODE.format(told=str(folder / "imported"))
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
        (folder / f"{name}.py").write_text(code)


def imported(folder: Path) -> list[str]:
    told = folder / "imported"
    return told.read_text().split() if told.exists() else []

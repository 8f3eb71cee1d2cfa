"""Libraries to be compared with, each in an environment of its own that shares this one's."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Its Python; made once. What `packages` (pinned) do not bring comes from this environment."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--no-deps", *packages]
        subprocess.run(install, check=True)
        site = next((folder / "lib").glob("python*")) / "site-packages"
        (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
        (folder / "done").touch()
    return python

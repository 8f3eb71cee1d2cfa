"""What lies in the working directory is data, and never code of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.lake.paths import LakePaths
from jobs.query import views
from tests.helpers import ROOT, ok, run_cli, write_source
from tests.limits import COMMAND_S, RUN_S
from tests.serving import serving, settings_of
from tests.strange_modules import imported, write_modules
from tests.wheels import installed, wheel_of

pytestmark = pytest.mark.integration
PATHS = """
    import json, ray, sys
    from jobs.cluster import connect
    from jobs.cluster.settings import RaySettings
    connect.ensure(RaySettings(cpus=1), 1)
    print(json.dumps(ray.get(ray.remote(lambda: __import__("sys").path).remote())))
"""


OTHER = 12345  # another user
REACHED = f"""
    import json, os, subprocess, sys
    from pathlib import Path
    from jobs.cluster import connect
    from jobs.cluster.settings import RaySettings
    connect.ensure(RaySettings(cpus=1), 1)
    folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    assert folder.stat().st_mode & 0o777 == 0o700, folder
    # What Ray opens to everybody is inside.
    tried = ["ls .", "cat token", "mv token other", "touch r/x", "ls r/session_latest", "ls forks"]
    other = ["setpriv", "--reuid={OTHER}", "--regid={OTHER}", "--clear-groups", "sh", "-c"]
    same = [subprocess.run(["sh", "-c", "ls " + one], cwd=folder).returncode for one in (".", "r")]
    done = [subprocess.run([*other, f"cd {{folder}} && {{one}}"]).returncode for one in tried]
    print(json.dumps([same, done]))
"""


def test_a_night_in_a_folder_of_modules_imports_none(tmp_path: Path) -> None:
    write_source(tmp_path / "source" / "a.parquet", range(300))
    write_modules(tmp_path)
    settings = settings_of(tmp_path, "d", evaluate=None, gate=None, drift=None)
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(settings))
    command = ("nightly", "--config", "n.yaml", "--night", "2026-01-01")
    ok(run_cli(*command, cwd=tmp_path, env={"PYTHONPATH": ""}))
    assert imported(tmp_path) == []


def test_an_installed_latentlake_stages_the_photos_beside_such_modules(tmp_path: Path) -> None:
    """With Ray's workers, which would import `jobs` from here: staging hung for ever."""
    photos = tmp_path / "photos"
    write_source(photos / "a.parquet", range(30))
    write_modules(photos)
    wheel = wheel_of(tmp_path / "wheel")
    assert files_of(wheel) == product()
    program = installed(wheel, tmp_path / "env")
    words = ["stage", "--source", "a.parquet", "--dataset", "d", "--lake", "lake", "--json"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [program, *words], cwd=photos, env=env, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["staged"] == 30
    assert imported(photos) == []


def test_a_server_its_worker_and_a_run_in_a_folder_of_modules_import_none(tmp_path: Path) -> None:
    write_source(tmp_path / "source" / "a.parquet", range(3))
    write_modules(tmp_path)
    settings = settings_of(tmp_path, "d")
    settings["stage"]["source"] = "source/a.parquet"  # in the folder that serve was started in
    with serving(tmp_path, settings) as served:
        run = served.wait(served.start("nightly/d", night="2026-01-01"))
    # Too few images for a model; but they were found, and staged.
    assert "no images in its validation split" in run["state"]["message"]
    assert (
        len(views.sql(LakePaths((tmp_path / "lake").as_uri()), "SELECT image_id FROM images")) == 3
    )
    assert imported(tmp_path) == []


def test_ray_adds_no_more_to_its_workers_paths_than_the_driver_has(tmp_path: Path) -> None:
    paths = told_by(PATHS, tmp_path)
    assert not {str(tmp_path), "", "."} & set(paths)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="root becomes another")
def test_another_user_reaches_nothing_of_an_embedded_ray(tmp_path: Path) -> None:
    same, other = told_by(REACHED, tmp_path)
    assert same == [0, 0]
    assert other
    assert 0 not in other


def files_of(wheel: Path) -> set[str]:
    """Without what says what is in it."""
    with zipfile.ZipFile(wheel) as packed:
        return {name for name in packed.namelist() if ".dist-info/" not in name}


def product() -> set[str]:
    """Every module of ours, and what lies beside them: templates, the sample."""
    folders = [ROOT / name for name in ("vae_core", "jobs", "flows")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in files if path.parent.name != "__pycache__"}


def told_by(script: str, folder: Path) -> Any:
    """What a driver of its own prints last."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        check=True,
        timeout=RUN_S,
    )
    return json.loads(done.stdout.splitlines()[-1])

"""What lies in the working directory is data, and never code of ours.

But that Prefect puts a deployment's folder on the path of its runs by itself (3.8).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ok, run_cli, write_source
from tests.limits import RUN_S, START_S, until
from tests.serving import serving, settings_of
from tests.strange_modules import imported, write_modules

pytestmark = pytest.mark.integration
PATHS = """
    import json, ray, sys
    from jobs import cluster
    from jobs.config import RaySettings
    cluster.ensure(RaySettings(cpus=1), 1)
    print(json.dumps(ray.get(ray.remote(lambda: __import__("sys").path).remote())))
"""


OTHER = 12345  # another user
REACHED = f"""
    import json, os, subprocess, sys
    from pathlib import Path
    from jobs import cluster
    from jobs.config import RaySettings
    cluster.ensure(RaySettings(cpus=1), 1)
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


def test_a_server_and_its_worker_in_a_folder_of_modules_import_none(tmp_path: Path) -> None:
    write_source(tmp_path / "source" / "a.parquet", range(3))
    write_modules(tmp_path)
    with serving(tmp_path, settings_of(tmp_path, "d")) as served:
        workers = "/work_pools/latentlake/workers/filter"
        until(lambda: served.call("POST", workers, {}), START_S)
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

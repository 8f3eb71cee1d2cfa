"""What lies in the working directory is data, and never code of ours.

But that Prefect puts a deployment's folder on the path of its runs by itself (3.8).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
    command = [sys.executable, "-P", "-c", "\n".join(line[4:] for line in PATHS.splitlines())]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        check=True,
        timeout=RUN_S,
    )
    paths = json.loads(done.stdout.splitlines()[-1])
    assert not {str(tmp_path), "", "."} & set(paths)

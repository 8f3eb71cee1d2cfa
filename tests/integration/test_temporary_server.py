"""The Prefect server that a `nightly` without one starts for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers import LATENTLAKE, run_cli, write_source
from tests.limits import COMMAND_S, END_S, RUN_S, until
from tests.prefect_home import ask, prepare, wait_until_written
from tests.serving import command_of, descendants, settings_of

pytestmark = pytest.mark.integration
NIGHT = ("--night", "2026-01-01")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    prepare(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    write_source(tmp_path / "source" / "a.parquet", range(300))
    path = tmp_path / "n.yaml"
    path.write_text(yaml.safe_dump(settings_of(tmp_path, "d")))
    return path


def servers(pid: int) -> list[int]:
    return [each for each in descendants(pid) if "flows.temporary_server" in command_of(each)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_command_however_that_ends(config: Path, home: Path, how: int) -> None:
    process = subprocess.Popen(
        [LATENTLAKE, "nightly", "--config", config, *NIGHT],
        env=os.environ | {"PREFECT_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        (server,) = until(lambda: servers(process.pid))
        until(lambda: ask(home, "SELECT 1 FROM flow_run"), RUN_S)  # it is at work
        process.send_signal(how)
        process.wait(END_S)
        until(lambda: "flows.temporary_server" not in command_of(server), END_S)
    finally:
        process.kill()


TELLS_ITS_MODULES = """
import sys
from flows.cli.main import main
try:
    main()
finally:
    print("server" if "prefect.server.api.server" in sys.modules else "client alone")
"""


def test_its_command_has_the_client_alone_and_all_that_is_told_is_kept(
    config: Path, home: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["stage"]["source"] = str(tmp_path / "nowhere")
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-c", TELLS_ITS_MODULES, "nightly", "--config", config, *NIGHT],
        env=os.environ | {"PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 2
    assert "nowhere does not exist" in done.stderr
    assert done.stdout.splitlines()[-1] == "client alone"
    wait_until_written(home)
    runs = ask(home, "SELECT name, state_type FROM flow_run")
    assert runs == [("nightly d 2026-01-01", "FAILED")]


def test_one_that_does_not_start_is_told_in_a_sentence(config: Path, home: Path) -> None:
    broken = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/x.db"}
    ran = run_cli("nightly", "--config", config, *NIGHT, env=broken | {"PREFECT_HOME": str(home)})
    assert ran.code == 1
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("latentlake: Prefect's temporary server did not start")
    assert "name a server in PREFECT_API_URL" in last

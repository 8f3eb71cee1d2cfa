"""The Ray job's entry points: this release's, and the one that releases before 0.2 submit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jobs.dispatch.log_protocol import VERSION, WORK, LogReader, version
from jobs.errors import InputError
from tests.limits import COMMAND_S


@pytest.mark.parametrize("module", ["jobs.submitted", "jobs.dispatch.entrypoint"])
def test_work_of_another_release_is_refused_with_both_versions(module: str) -> None:
    env = os.environ | {VERSION: "0.1.0", WORK: "{}"}
    command = [sys.executable, "-P", "-m", module]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMMAND_S)
    heard = LogReader()
    heard.text(done.stdout, all_of_it=True)
    assert done.returncode == InputError.exit_code
    assert isinstance(heard.error, InputError)
    assert f"the cluster has latentlake {version()}, this side 0.1.0" in str(heard.error)

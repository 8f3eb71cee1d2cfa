"""The Ray job's entry point, whose name every release submits."""

from __future__ import annotations

import os
import subprocess
import sys

from jobs.dispatch.log_protocol import VERSION, WORK, LogReader, version
from jobs.dispatch.submit import ENTRY
from jobs.errors import InputError
from tests.limits import COMMAND_S


def test_work_of_another_release_is_refused_with_both_versions() -> None:
    env = os.environ | {VERSION: "0.1.0", WORK: "{}"}
    command = [sys.executable, *ENTRY.split()[1:]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMMAND_S)
    heard = LogReader()
    heard.text(done.stdout, all_of_it=True)
    assert done.returncode == InputError.exit_code
    assert isinstance(heard.error, InputError)
    assert f"the cluster has latentlake {version()}, this side 0.1.0" in str(heard.error)

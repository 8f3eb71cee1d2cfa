"""A `latentlake` process that stays, and runs one command after the other.

Most of what a command costs is its start: imports of torch, Ray and Prefect, an embedded Ray, a
Prefect server. A test that asks what commands do, and not how a process begins and ends, runs them
in one of these. `helpers.run_cli` has a process of its own for each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.helpers import ROOT, Ran
from tests.limits import COMMAND_S, END_S
from tests.prefect_home import prepare


class CommandProcess:
    """Starts with its first command; a command that ends the process gets another one."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        """folder: for what commands print, and for Prefect. env: of the process and its Ray."""
        self.folder = folder
        self.prefect_home = folder / "prefect"
        self._env = {**os.environ, "PREFECT_HOME": str(self.prefect_home), **(env or {})}
        self._env["PYTHONPATH"] = str(ROOT)
        self._process: subprocess.Popen[str] | None = None

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = COMMAND_S,
    ) -> Ran:
        """env: of this command, but not of Ray's workers, which have that of the process."""
        out, err = self.folder / "out", self.folder / "err"
        command = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or self.folder),
            "env": dict(env or {}),
            "out": str(out),
            "err": str(err),
        }
        if self._process is None or self._process.poll() is not None:
            self._process = self._started()
        code = self._answer(self._process, json.dumps(command), timeout_s)
        return Ran(code, out.read_text(), err.read_text())

    def _started(self) -> subprocess.Popen[str]:
        if not self.prefect_home.exists():
            prepare(self.prefect_home)
        with (self.folder / "process-err").open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.command_loop"],
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def _answer(self, process: subprocess.Popen[str], command: str, timeout_s: float) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        hangs = threading.Timer(timeout_s, os.killpg, (process.pid, signal.SIGKILL))
        hangs.start()
        try:
            process.stdin.write(command + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            hangs.cancel()
        assert answer, f"it ended or hung: {command}\n{(self.folder / 'err').read_text()}"
        return json.loads(answer)["code"]

    def end(self) -> None:
        """As a terminal ends it: what it has started ends with it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

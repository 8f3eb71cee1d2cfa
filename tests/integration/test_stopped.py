"""A command that is stopped, by Ctrl-C or by a system's SIGTERM, with Ray at work."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers import LATENTLAKE, TINY_STAGE, TINY_TRAIN, ok, run_cli, write_source
from tests.limits import COMMAND_S, END_S, until

pytestmark = pytest.mark.integration


def of_session(session: int) -> list[int]:
    """What a command has started, Ray's processes too, whoever their parent is now."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_says_so_and_leaves_no_process(
    tmp_path: Path, stop: signal.Signals
) -> None:
    write_source(tmp_path / "a.parquet", range(200))
    lake = ("--lake", str(tmp_path / "lake"))
    ok(run_cli("stage", "--source", tmp_path / "a.parquet", "--dataset", "d", *TINY_STAGE, *lake))
    tiny = [word for word in TINY_TRAIN if word not in ("--epochs", "2")]
    words = ["train", "--dataset", "d", "--model", "m", "--epochs", "500000", *tiny, *lake]
    with (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen(
            [str(LATENTLAKE), *words], stdout=told, stderr=told, start_new_session=True
        )
    said = tmp_path / "told"
    until(lambda: "images of 28x28x1" in said.read_text(), COMMAND_S)
    os.kill(process.pid, stop)
    assert process.wait(END_S) == 1
    text = said.read_text()
    assert text.rstrip().endswith("stopped"), text[-2000:]
    assert "Traceback" not in text
    assert "SIGTERM" not in text
    until(lambda: not of_session(process.pid), END_S)

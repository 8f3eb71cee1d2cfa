"""What a terminal is shown of a stranger's labels, names and files: a real one (a pty)."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.control_characters import CONTROLS
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from tests.helpers import LATENTLAKE, image_bytes
from tests.inline import InlineStage
from tests.limits import COMMAND_S

pytestmark = pytest.mark.integration
# A window's title, its colours, a line that hides another, C1 for the same, text turned round.
EVIL = "\x1b]0;owned\x07\x1b[31mred\x1b[2K\r\x9b31m\u202egnp.exe"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> LakePaths:
    folder = tmp_path_factory.mktemp("terminal")
    source = folder / "source"
    source.mkdir()
    kind = pa.struct([("bytes", pa.binary())])
    images = pa.array([{"bytes": data} for data in image_bytes(range(20))], kind)
    broken = pa.array([{"bytes": b"no image"}], kind)
    pq.write_table(
        pa.table({"image": pa.concat_arrays([images, broken]), "label": [EVIL] * 21}),
        source / f"a{EVIL}.parquet",
    )
    lake = LakePaths((folder / "lake").as_uri())
    runner.run(InlineStage(lake, source, max_refused=0.5))
    return lake


def at_a_terminal(*words: str) -> str:
    """What a command writes to it, on either stream."""
    near, far = pty.openpty()
    process = subprocess.Popen(
        [str(LATENTLAKE), *words], stdin=far, stdout=far, stderr=far, close_fds=True
    )
    os.close(far)
    written = b""
    while True:
        try:
            part = os.read(near, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    process.wait(COMMAND_S)
    os.close(near)
    return written.decode("utf-8").replace("\r\n", "\n")


@pytest.mark.parametrize(
    "words",
    [
        ("query", "sql", "SELECT label, count(*), min(source_uri) FROM images GROUP BY ALL"),
        ("query", "sql", "SELECT source_uri, message FROM quarantine"),
        ("query", "sql", "--guarded", "SELECT label FROM images LIMIT 1"),
        ("query", "sql", f"SELECT '{EVIL}' FROM nothing"),
        ("query", "sql", "--csv", "SELECT label FROM images"),
        ("describe", "--dataset", "d"),
        ("describe", "--dataset", f"d{EVIL}"),
    ],
)
def test_nothing_that_a_terminal_would_obey_reaches_it(
    lake: LakePaths, words: tuple[str, ...]
) -> None:
    shown = at_a_terminal(*words, "--lake", lake.uri)
    assert len(shown) > 20
    assert "Traceback" not in shown
    assert not CONTROLS.findall(shown), shown


def test_nor_does_it_of_what_staging_says(lake: LakePaths, tmp_path: Path) -> None:
    source = ("--source", str(tmp_path / EVIL), "--dataset", "d")
    shown = at_a_terminal("stage", *source, "--lake", lake.uri)
    assert "owned" in shown
    assert not CONTROLS.findall(shown), shown

"""A small lake to be looked at, and `latentlake explore` of it."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.engine import runner
from jobs.engine.commit import append_rows
from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import DRIFT
from jobs.tables import catalog
from jobs.tables.delta import Table
from tests.helpers import LATENTLAKE, image_bytes, labels
from tests.inline import InlineEmbed, InlineStage, InlineTrain
from tests.limits import END_S, START_S

HOSTILE = "<script>window.taken = true</script><img src=x onerror='window.taken = true'>"
KINDS = ["T-shirt", "trousers", "pullover", "dress", "coat"]
KINDS += ["sandal", "shirt", "trainer", "bag", "boot"]
NIGHTS = ("2026-01-01", "2026-01-02")
FIRST, SECOND = range(600), range(600, 660)


def write_labelled(path: Path, rows: Iterable[int], hostile: Iterable[int]) -> None:
    """Parquet of sample images with labels in words; those of `hostile` would like to be run."""
    rows = list(rows)
    named = [KINDS[label] for label in labels(rows)]
    for position in hostile:
        named[position] = HOSTILE
    kind = pa.struct([("bytes", pa.binary())])
    images = pa.array([{"bytes": data} for data in image_bytes(rows)], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": named}), path)


def make_lake(folder: Path) -> LakePaths:
    """`lake` with two nights of a dataset `d` by a model `m`; drift was found in the second."""
    lake = LakePaths((folder / "lake").as_uri())
    source = folder / "photos" / "incoming-of-january"
    write_labelled(source / "a.parquet", FIRST, hostile=[7])
    runner.run(InlineStage(lake, source))
    runner.run(InlineTrain(lake, epochs=8))
    more = {"alpha": 0.5, "reconstructions": "all"}
    runner.run(InlineEmbed(lake, **more))
    write_labelled(source / "b.parquet", SECOND, hostile=range(0, len(SECOND), 2))
    runner.run(InlineStage(lake, source, night=NIGHTS[1]))
    runner.run(InlineEmbed(lake, night=NIGHTS[1], **more))
    _test_drift(lake)
    return lake


def _test_drift(lake: LakePaths) -> None:
    model, version = catalog.resolve_model(lake, "m")
    same = {"model": model, "model_version": version, "dataset": "d", "test": "combined"}
    for night, p_value in zip(NIGHTS, (0.4, 1e-6), strict=True):
        found = {"p_value": p_value, "drifted": p_value < 0.01, "night": night}
        row = {**same, **found, "job_id": f"drift-{night}"}
        append_rows(Table(lake.catalog("drift"), DRIFT), f"drift-{night}", [row])


class Explored:
    """A running `latentlake explore`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])


@contextlib.contextmanager
def exploring(lake: LakePaths, *options: str) -> Iterator[Explored]:
    """By the command line, on a free port; ended with the block."""
    process = subprocess.Popen(
        [
            str(LATENTLAKE),
            "explore",
            "--no-open",
            "--lake",
            lake.uri.removeprefix("file://"),
            *options,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: said.put(process.stdout.readline()), daemon=True).start()
    try:
        line = said.get(timeout=START_S)
        assert line.startswith("http://127.0.0.1:"), line or process.poll()
        yield Explored(process, line.split()[0])
    finally:
        process.terminate()
        process.wait(END_S)

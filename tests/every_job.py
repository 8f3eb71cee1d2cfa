"""Every job that writes to a lake, inline, and a lake on which each of them has something to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from jobs.drift.job import DriftJob
from jobs.drift.settings import DriftSettings
from jobs.embed.drop import DropJob
from jobs.embed.map import MapJob
from jobs.embed.settings import DropSettings, MapSettings
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.maintain.vacuum import vacuum
from jobs.promote.job import PromoteJob
from jobs.promote.settings import PromoteSettings
from jobs.query import views
from jobs.search import index
from jobs.tables import catalog
from tests.helpers import write_source
from tests.inline import InlineCompact, InlineEmbed, InlineEvaluate, InlineStage, InlineTrain

NIGHT = "2026-01-03"


def work(folder: Path) -> Path:
    """Makes `lake` in the folder: three nights, two bundles, the first one's embeddings of two of
    the nights, and an alias that went there and back. Beside it `s`, a source with a fourth night's
    file, and without one that was there."""
    lake = LakePaths((folder / "lake").as_uri())
    write_source(folder / "s" / "a.parquet", range(150), broken=[3])
    write_source(folder / "s" / "gone.parquet", range(300, 304))
    runner.run(InlineStage(lake, folder / "s"))
    runner.run(InlineTrain(lake, epochs=1))
    write_source(folder / "s" / "b.parquet", range(150, 200))
    runner.run(InlineStage(lake, folder / "s", "2026-01-02"))
    runner.run(InlineTrain(lake, "2026-01-02", epochs=1, promote=False))
    runner.run(InlineEmbed(lake, "2026-01-02", reconstructions="all", alpha=0.9))
    runner.run(InlineEvaluate(lake, "2026-01-02", samples=2))
    first, second = bundles(lake)
    runner.run(promotion(lake, second, "2026-01-02"))
    runner.run(promotion(lake, first, "2026-01-02"))
    write_source(folder / "s" / "c.parquet", range(400, 440))
    runner.run(InlineStage(lake, folder / "s", "2026-01-02"))
    write_source(folder / "s" / "d.parquet", range(200, 220))
    (folder / "s" / "gone.parquet").unlink()
    for left in ("d/images/a.parquet", "d/sources/b.parquet", "d/cards/.c.json.0123abcd.tmp"):
        (folder / "lake" / "datasets" / left).write_bytes(b"of somebody who was killed")
    return folder


def bundles(lake: LakePaths) -> tuple[str, str]:
    """Versions of the two bundles, the one that was champion first first."""
    rows = [row for row in catalog.catalog_rows(lake, "aliases") if row["sequence"] == 1]
    first = rows[0]["version"]
    (second,) = (v for v in catalog.bundle_versions(lake, "m") if v != first)
    return first, second


def promotion(lake: LakePaths, version: str, night: str = NIGHT) -> PromoteJob:
    return PromoteJob(lake, PromoteSettings(model=f"m@{version}", rule=None), night)


def _drop(lake: LakePaths) -> DropJob:
    return DropJob(lake, DropSettings(model=f"m@{bundles(lake)[0]}"), NIGHT)


def _back(lake: LakePaths) -> PromoteJob:
    settings = PromoteSettings(model="m", back=True, back_from=bundles(lake)[0])
    return PromoteJob(lake, settings, NIGHT)


def _train(lake: LakePaths) -> InlineTrain:
    run = {"checkpoint_s": 0.0001}
    return InlineTrain(lake, NIGHT, epochs=2, batch_size=32, seed=3, run=run, promote=False)


JOBS: dict[str, Callable[[LakePaths, Path], object]] = {
    "stage": lambda lake, source: runner.run(InlineStage(lake, source, NIGHT, max_removed=1.0)),
    "train": lambda lake, source: runner.run(_train(lake)),
    "embed": lambda lake, source: runner.run(InlineEmbed(lake, NIGHT, alpha=0.9)),
    "redo": lambda lake, source: runner.run(InlineEmbed(lake, NIGHT, redo=True, alpha=0.9)),
    "evaluate": lambda lake, source: runner.run(InlineEvaluate(lake, NIGHT)),
    "drift": lambda lake, source: runner.run(
        DriftJob(lake, DriftSettings(dataset="d", model="m"), NIGHT)
    ),
    "map": lambda lake, source: runner.run(MapJob(lake, MapSettings(model="m"), NIGHT)),
    "promote": lambda lake, source: runner.run(promotion(lake, bundles(lake)[1])),
    "rollback": lambda lake, source: runner.run(_back(lake)),
    "compact": lambda lake, source: runner.run(InlineCompact.of(lake, night=NIGHT)),
    "compact a model": lambda lake, source: runner.run(InlineCompact.of(lake, "model", "m", NIGHT)),
    "drop": lambda lake, source: runner.run(_drop(lake)),
    "index": lambda lake, source: index.build(lake, "m", "cosine"),
    "vacuum": lambda lake, source: vacuum(lake, ["d"], ["m"], keep_days=0.0, grace_s=0.0),
}

# What differs from run to run, whoever was killed: times, what the log's length numbers, and the
# unit that sums an evaluation up, whose name is of the files of an attempt.
VARIES = {
    "runs": ("finished_at", "seconds", "counts", "versions", "sequence"),
    "evaluated": ("unit_id",),
    "evaluations": ("unit_id",),
}


# Asked for again once it is done, a redo is another job: what it leaves, but for its name.
OF_A_JOB = ("job_id", "unit_id", "batch")


def rows(lake: LakePaths, of: str = "") -> dict[str, pa.Table]:
    """Of every view, in an order of their own. of: the job that they are compared after."""
    held = views.Views(lake)
    found = {}
    for name in sorted(views.VIEWS):
        if of == "redo" and name == "runs":
            continue
        left_out = VARIES.get(name, ()) + (OF_A_JOB if of == "redo" else ())
        columns = [c for c in held.columns(name) if c not in left_out]
        listed = ", ".join(f'"{column}"' for column in columns)
        found[name] = held.sql(f"SELECT {listed} FROM {name} ORDER BY ALL")
    return found

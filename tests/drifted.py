"""A lake of model `m` with a night of changed images, and drift as tests ask for it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.drift import results as drift_results
from jobs.drift.job import DriftJob
from jobs.drift.settings import DriftSettings
from jobs.engine import job, runner
from jobs.engine.report import JobReport
from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from tests.helpers import image_bytes, labels
from tests.inline import InlineEmbed, InlineStage, Overtaken

NIGHTS = ("2026-01-02", "2026-01-03")
EASY = {"alpha": 0.05, "nights": 1, "relabellings": 99, "block_images": 1, "least_images": 10}
ALPHA = 0.6  # of embed: of so few images something has to be flagged

Change = Callable[[np.ndarray], np.ndarray]


def drift_job(lake: LakePaths, night: str = NIGHTS[0], **settings) -> DriftJob:
    told = {"dataset": "d", "model": "m"} | EASY | settings
    return DriftJob(lake, DriftSettings(**told), night)


def judge(lake: LakePaths, night: str = NIGHTS[0], **settings) -> JobReport:
    return runner.run(drift_job(lake, night, **settings))


class OvertakenDrift(Overtaken, DriftJob):
    @classmethod
    def of(cls, lake: LakePaths, rival: job.Job, **settings) -> OvertakenDrift:
        made = cls(lake, drift_job(lake, **settings).settings, NIGHTS[0])
        made.rival = rival
        return made


def negative(x_HW: np.ndarray) -> np.ndarray:
    return 255 - x_HW


def same(x_HW: np.ndarray) -> np.ndarray:
    return x_HW


def write_changed(path: Path, rows: Iterable[int], change: Change) -> None:
    rows = list(rows)
    images = []
    for data in image_bytes(rows):
        buffer = io.BytesIO()
        Image.fromarray(change(np.array(Image.open(io.BytesIO(data))))).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": ""})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels(rows)}), path)


def arrive(
    lake: LakePaths,
    folder: Path,
    rows: Iterable[int],
    change: Change,
    night: str = NIGHTS[0],
    **how,
) -> None:
    write_changed(folder / "more" / f"{night}.parquet", rows, change)
    runner.run(InlineStage(lake, folder / "more", night=night))
    runner.run(InlineEmbed(lake, night=night, alpha=ALPHA, **how))


def version(lake: LakePaths) -> str:
    return catalog.resolve_model(lake, "m")[1]


def rows_of(lake: LakePaths, name: str, order: str) -> pa.Table:
    return views.sql(lake, f"SELECT * FROM {name} ORDER BY {order}")


def combined(lake: LakePaths) -> list[dict]:
    return drift_results.judgements(lake, "m", version(lake), "d")


def held_out(lake: LakePaths) -> int:
    found = views.sql(lake, "SELECT count(*) AS n FROM embeddings WHERE model_split = 'test'")
    return found["n"][0].as_py()


def believed(lake: LakePaths, table: str) -> dict[str, set[bool]]:
    """By night."""
    found: dict[str, set[bool]] = {}
    for row in rows_of(lake, table, "night").to_pylist():
        found.setdefault(row["night"], set()).add(row["calibration_valid"])
    return found

"""A lake with two nights to report: clothing, then more of it with pictures of a broken camera."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.engine import runner
from jobs.engine.commit import append_rows
from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import DRIFT, EVALUATIONS
from jobs.tables import catalog
from jobs.tables.delta import Table
from tests.helpers import image_bytes, labels
from tests.inline import InlineEmbed, InlineStage, InlineTrain

NIGHTS = ("2026-01-01", "2026-01-02")
HOSTILE = "<script>alert(1)</script>"


def inverted(data: bytes) -> bytes:
    """The image with black and white exchanged, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(data)))).save(buffer, format="png")
    return buffer.getvalue()


def write_night(
    path: Path, rows: Sequence[int], spoilt: int = 0, cut_short: int = 0, names: Any = str
) -> None:
    """A Parquet source whose first images are inverted and whose last ones are cut short.

    names: of a label, the text that it becomes.
    """
    data = image_bytes(rows)
    data = [inverted(each) if n < spoilt else each for n, each in enumerate(data)]
    for n in range(cut_short):
        data[-1 - n] = data[-1 - n][: len(data[-1 - n]) // 2]
    images = [{"bytes": each, "path": f"{row}.png"} for row, each in zip(rows, data, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    told = [names(label) for label in labels(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": told}), path)


def two_nights(
    folder: Path,
    first: int,
    second: int,
    spoilt: int,
    epochs: Sequence[int] = (1, 2),
    names: Any = str,
    dataset: str = "d",
    model: str = "m",
    **training: Any,
) -> LakePaths:
    """A champion each night, the second of more epochs, that embeds what is new."""
    of = {"dataset": dataset, "model": model}
    lake = LakePaths((folder / "lake").as_uri())
    rows = [range(first), range(first, first + second)]
    for number, night in enumerate(NIGHTS):
        source = folder / "source" / f"night-{number + 1}.parquet"
        broken = {"spoilt": spoilt, "cut_short": 3} if number else {}
        write_night(source, rows[number], names=names, **broken)
        runner.run(InlineStage(lake, folder / "source", night, dataset=dataset))
        settings = {"epochs": epochs[number], "images_version": 1, "promote": True} | of | training
        runner.run(InlineTrain(lake, night, **settings))
        runner.run(InlineEmbed(lake, night, alpha=0.1, backfill=not number, **of))
    return lake


def versions(lake: LakePaths) -> list[str]:
    """The champions, oldest first."""
    rows = sorted(catalog.catalog_rows(lake, "aliases"), key=lambda row: row["sequence"])
    return [row["version"] for row in rows]


def _row(spec: Any, **values: Any) -> dict[str, Any]:
    return dict.fromkeys(spec.schema.names) | values


def _names(lake: LakePaths) -> dict[str, str]:
    """The one model and the one dataset."""
    return {"model": catalog.models(lake)[0], "dataset": catalog.datasets(lake)[0]}


def add_evaluation(
    lake: LakePaths, version: str, night: str, better_by: float = 0.0, images_version: int = 1
) -> None:
    """Invented numbers, with intervals of ± 1; one that could not be had."""

    def row(metric: str, of: str | None, value: float | None, unit: str, better: str, **more: Any):
        ends = {} if value is None else {"low": value - 1.0, "high": value + 1.0}
        names = {"model_version": version, "images_version": images_version}
        names |= {"metric": metric, "of": of}
        told = {"value": value, "unit": unit, "better": better, "confidence": 0.95, "images": 40}
        job_id = {"night": night, "job_id": f"evaluate-{version}", **_names(lake)}
        return _row(EVALUATIONS, **names, **ends, **told, **job_id, **more)

    why = {"note": "no image of the test split is known to be an anomaly"}
    rows = [
        row("neg_elbo", None, -340.0 - better_by, "nats", "lower"),
        row("kl", None, 18.5, "nats", "none"),
        row("active_units", None, 12.0, "1", "higher"),
        row("probe_accuracy", "label", 0.78, "1", "higher"),
        row("auroc", "neg_elbo", None, "1", "higher", **why),
        *(row("kl_dimension", str(d), 3.4 * 0.85**d, "nats", "none") for d in range(16)),
    ]
    append_rows(Table(lake.catalog("evaluations"), EVALUATIONS), f"evaluate-{version}", rows)


def add_drift(
    lake: LakePaths, version: str, night: str, p_value: float | None, note: str | None = None
) -> None:
    """Invented tests of a night; without a p-value, one that was not tested."""
    drifted = None if p_value is None else p_value <= 0.05 / 30
    sizes = {"arrivals": 900, "reference": 150, "alpha": 0.05 / 30, "first_version": 1}
    same = sizes | {"model_version": version, "night": night, "job_id": f"drift-{night}"}
    same |= {"last_version": int(night[-2:]), "p_value": p_value, **_names(lake)}
    rows = [_row(DRIFT, test="combined", drifted=drifted, note=note, **same)]
    if p_value is not None:
        kinds = [
            ("hotelling", "embeddings", None, 0.61, "Mahalanobis distance"),
            ("mmd", "embeddings", None, 0.014, "squared MMD"),
            ("classifier", "embeddings", None, 0.59, "AUROC"),
            ("ks", "embeddings", "3", 0.12, "distance of distributions"),
            ("ks", "embeddings", "11", 0.04, "distance of distributions"),
        ]
        for test, sample, of, effect, unit in kinds:
            found = {"test": test, "sample": sample, "of": of, "effect": effect}
            rows.append(_row(DRIFT, **found, effect_unit=unit, **same))
    append_rows(Table(lake.catalog("drift"), DRIFT), f"drift-{night}", rows)


def judged(lake: LakePaths) -> None:
    """Both champions evaluated, a quiet week, then a night that drifted."""
    before, now = versions(lake)
    add_evaluation(lake, before, NIGHTS[0])
    add_evaluation(lake, now, NIGHTS[1], better_by=60.0)
    for day, p_value in enumerate((0.4, 0.7, 0.21, 0.05, 0.62, 0.33), 26):
        add_drift(lake, before, f"2025-12-{day}", p_value)
    add_drift(lake, now, NIGHTS[1], 0.0005)

"""The demo: two nights on real images, narrated as they happen.

Night one brings nine kinds of clothing; night two, unseen images of all ten, the tenth never
seen in training. Everything that is printed was measured in the run or read from the tables.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import logging
import time
from importlib.resources import files
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from flows.nightly.settings import NightlySettings
from jobs.cluster.settings import RaySettings
from jobs.datasets.splits import pixels_of
from jobs.drift import results as drift_results
from jobs.embed.settings import EmbedSettings
from jobs.engine.report import JobReport
from jobs.hashing import digest
from jobs.imaging.contact_sheet import Row, contact_sheet
from jobs.lake.paths import LakePaths
from jobs.lake.storage import create_or_keep, join, local_path, resolve_uri
from jobs.query import api as query_api
from jobs.query import views
from jobs.report.write import report_uri
from jobs.stage.settings import StageSettings
from jobs.tables import catalog
from jobs.train.settings import TrainSettings
from vae_core.scores.names import SCORES
from vae_core.stats.metrics import auroc

KINDS = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
UNSEEN = KINDS.index("bag")
NAME = "fashion"
NIGHTS = ("2026-01-01", "2026-01-02")
FIRST_NIGHT_SHARE = 0.7  # of each of the nine kinds; the rest comes on night two
UNSEEN_IMAGES = 300  # of the tenth kind, about a tenth of night two
CUT_SHORT = 3  # files of night two that are truncated on purpose, for the quarantine to catch
SHAPE = (28, 28, 1)
SHOWN = 10
QUARANTINE_QUERY = "SELECT night, reason, count(*) AS n FROM quarantine GROUP BY ALL"

log = logging.getLogger("latentlake")


@dataclasses.dataclass(frozen=True)
class Told:
    """What the demo ends with: for machines and for people."""

    result: dict[str, Any]
    text: str


def run_demo(lake_uri: str) -> Told:
    """Run both nights on a lake; a second run finds nothing to do."""
    started = time.monotonic()
    lake = LakePaths(resolve_uri(lake_uri))
    _say(f"latentlake demo on {lake.uri}")
    reports = [_night(lake, index) for index in range(len(NIGHTS))]
    result = _measured(lake, [r for night in reports for r in night])
    picture = join(lake.uri, "demo", f"night-two-{result['model_version']}.png")
    create_or_keep(picture, _picture(lake))
    result |= {"picture": _shown(picture), "seconds": time.monotonic() - started}
    return Told(result, _text(lake, lake_uri, result))


def _say(line: str) -> None:
    click.echo(line, err=True)


def settings_of(lake: LakePaths) -> NightlySettings:
    """Return the demo's nightly config; nothing about it is special to the demo."""
    return NightlySettings(
        lake=lake.uri,
        stage=StageSettings(
            source=join(lake.uri, "demo", "incoming"),
            dataset=NAME,
            height=SHAPE[0],
            width=SHAPE[1],
            channels=SHAPE[2],
            rows_per_unit=2000,
        ),
        train=TrainSettings(
            dataset=NAME,
            model=NAME,
            latent_dim=16,
            epochs=12,
            learning_rate=2e-3,
            workers=2,
        ),
        embed=EmbedSettings(dataset=NAME, model=NAME, reconstructions="all"),
        ray=RaySettings(cpus=2),
    )


def _config(lake: LakePaths) -> str:
    """Where the settings lie, as a user would write them."""
    values = settings_of(lake).model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False)
    # A lake may be moved, and a later release has other settings.
    uri = join(lake.uri, "demo", f"nightly-{digest(text)}.yaml")
    create_or_keep(uri, text.encode())
    return uri


def _night(lake: LakePaths, index: int) -> list[JobReport]:
    from flows.nightly.artifacts import report_line
    from flows.nightly.flow import nightly

    source = join(lake.uri, "demo", "incoming", f"night-{index + 1}.parquet")
    arrived = night_rows(index)
    create_or_keep(source, _parquet(arrived))
    kinds = len(set(arrived["label"].to_pylist()))
    _say(
        f"\nNight {index + 1} ({NIGHTS[index]}): {arrived.num_rows:,} images of {kinds} kinds "
        f"of clothing have arrived"
    )
    reports = nightly(_config(lake), dt.date.fromisoformat(NIGHTS[index]))
    for report in reports:
        _say(f"  {report.job:5} {report_line(report)}")
    return reports


def sample() -> pa.Table:
    """Return the 10,000 test images of Fashion-MNIST, in the Hugging Face column layout."""
    path = files("flows") / "sample" / "fashion-mnist-t10k.parquet"
    return pq.read_table(io.BytesIO(path.read_bytes()))


def night_rows(index: int) -> pa.Table:
    """Night one: most images of nine kinds. Night two: the others of these, and the tenth kind."""
    rows = sample()
    labels = np.array(rows["label"])
    chosen: list[int] = []
    for kind in range(len(KINDS)):
        places = np.flatnonzero(labels == kind)
        cut = int(len(places) * FIRST_NIGHT_SHARE)
        if kind == UNSEEN:
            chosen += [] if index == 0 else places[:UNSEEN_IMAGES].tolist()
        else:
            chosen += places[:cut].tolist() if index == 0 else places[cut:].tolist()
    taken = rows.take(sorted(chosen))
    return taken if index == 0 else _with_broken_files(taken)


def _with_broken_files(rows: pa.Table) -> pa.Table:
    """Cuts a few seen-kind files short, as a bad upload would."""
    images = rows["image"].to_pylist()
    labels = rows["label"].to_pylist()
    seen = [i for i, label in enumerate(labels) if label != UNSEEN]
    for place in seen[:: len(seen) // CUT_SHORT][:CUT_SHORT]:
        images[place]["bytes"] = images[place]["bytes"][: len(images[place]["bytes"]) // 2]
    return rows.set_column(
        rows.schema.get_field_index("image"),
        "image",
        pa.array(images, rows.schema.field("image").type),
    )


def _parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=1000)
    return buffer.getvalue()


def _measured(lake: LakePaths, reports: list[JobReport]) -> dict[str, Any]:
    """Return what the tables and the run rows say; the same after a run that had nothing to do."""
    _, version = catalog.resolve_model(lake, NAME)
    runs = [row | {"counts": json.loads(row["counts"])} for row in catalog.runs(lake)]
    counts = views.sql(
        lake,
        """SELECT night, fate, count(*) AS n FROM sources WHERE dataset = 'fashion'
           GROUP BY ALL ORDER BY ALL""",
    ).to_pylist()
    return {
        "lake": lake.uri,
        "nothing_to_do": not any(report.job_ids for report in reports),
        "model_version": version,
        "rows": counts,
        "training": next(r["counts"] for r in runs if r["job"] == "train"),
        "stages": [_speed(row) for row in runs if row["job"] in ("stage", "embed")],
        "auroc": _aurocs(lake, version),
        "unseen_kind": KINDS[UNSEEN],
        "median_p_value": _median_p_values(lake, version),
        "drift": _drift(lake, version),
    }


def _speed(row: dict[str, Any]) -> dict[str, Any]:
    images = row["counts"].get("rows_in", row["counts"].get("embedded", 0))
    return {
        "job": row["job"],
        "night": row["night"],
        "images": images,
        "images_per_s": images / row["seconds"],
        "images_per_worker_s": images / row["counts"].get("unit_seconds", float("nan")),
    }


def _night_two(lake: LakePaths, version: str, columns: str) -> pa.Table:
    return views.sql(
        lake,
        f"""SELECT i.label, {columns} FROM embeddings e JOIN images i USING (image_id, dataset)
            WHERE e.model = '{NAME}' AND e.model_version = '{version}'
              AND e.night = '{NIGHTS[1]}' ORDER BY image_id""",
    )


def _aurocs(lake: LakePaths, version: str) -> dict[str, float | None]:
    """Of the unseen kind against the nine others, on night two, by score; None: no such score."""
    rows = _night_two(lake, version, ", ".join(f"e.{name}" for name in SCORES))
    unseen = np.array(rows["label"]) == UNSEEN
    return {
        name: None if rows[name].null_count else auroc(rows[name].to_numpy(), unseen)
        for name, info in SCORES.items()
        if info.anomalous != "none"
    }


def _median_p_values(lake: LakePaths, version: str) -> dict[str, float]:
    rows = _night_two(lake, version, "e.p_value")
    p_values, labels = rows["p_value"].to_numpy(), np.array(rows["label"])
    return {
        "seen kinds": float(np.median(p_values[labels != UNSEEN])),
        KINDS[UNSEEN]: float(np.median(p_values[labels == UNSEEN])),
    }


def _drift(lake: LakePaths, version: str) -> dict[str, Any] | None:
    """Return what was decided of night two; None where nothing was."""
    latest = drift_results.latest(lake, NAME, version, NAME, NIGHTS[1])
    return next((row for row in latest if row["test"] == "combined"), None)


def _picture(lake: LakePaths) -> bytes:
    """Night two: a few originals and reconstructions, and the top anomalies with theirs."""
    embeddings = query_api.Lake(lake.uri).embeddings(NAME)
    worst = embeddings.anomalies(top=SHOWN, night=NIGHTS[1])["image_id"].to_pylist()
    # The middle of the ranking, spread over it, stands for an ordinary image.
    ranked = (
        query_api.Lake(lake.uri)
        .embeddings(NAME)
        .anomalies(top=100_000, night=NIGHTS[1])["image_id"]
        .to_pylist()
    )
    step = len(ranked) // (SHOWN + 2)
    usual = ranked[step::step][:SHOWN]
    return contact_sheet(
        f"latentlake demo, night two: unseen kind is {KINDS[UNSEEN]!r}",
        [*_pair(lake, usual, "images of night two"), *_pair(lake, worst, "top anomalies")],
    )


def _pair(lake: LakePaths, image_ids: list[str], title: str) -> list[Row]:
    _, version = catalog.resolve_model(lake, NAME)
    listed = ", ".join(f"'{image_id}'" for image_id in image_ids)
    rows = views.sql(
        lake,
        f"""SELECT image_id, i.image, i.label, r.png, e.p_value
            FROM images i JOIN reconstructions r USING (image_id, dataset)
            JOIN embeddings e USING (image_id, dataset, model, model_version)
            WHERE model = '{NAME}' AND model_version = '{version}'
              AND image_id IN ({listed})""",
    )
    place = {image_id: row for row, image_id in enumerate(rows["image_id"].to_pylist())}
    rows = rows.take([place[image_id] for image_id in image_ids])
    originals = list(pixels_of(rows["image"], SHAPE))
    pngs = [np.asarray(Image.open(io.BytesIO(png)))[:, :, None] for png in rows["png"].to_pylist()]
    captions = [
        f"{KINDS[label]}\np = {p:.3f}"
        for label, p in zip(rows["label"].to_pylist(), rows["p_value"].to_pylist(), strict=True)
    ]
    return [
        Row(f"{title}, with conformal p-value", originals, captions),
        Row("their reconstructions", pngs, []),
    ]


def _shown(uri: str) -> str:
    path = local_path(uri)
    return str(path) if path is not None else uri


def _text(lake: LakePaths, lake_uri: str, result: dict[str, Any]) -> str:
    training = result["training"]
    lines = [
        "",
        "Nothing to do: both nights are in the tables already."
        if result["nothing_to_do"]
        else "Measured",
        "",
    ]
    for row in result["rows"]:
        lines.append(f"  {row['night']}  rows {row['fate']:9} {row['n']:7,}")
    lines += ["", f"  model {NAME}@{result['model_version']} (champion)"]
    if "train_nats" in training:
        lines.append(
            f"  train {training['train_nats']:.1f} nats, validation "
            f"{training['validation_nats']:.1f} nats (-ELBO per image, {np.prod(SHAPE)} grey "
            "values as a density: below zero is possible)"
        )
        lines.append(f"  train {training['images_per_s']:,.0f} images/s in its last epoch")
    for stage in result["stages"]:
        lines.append(
            f"  {stage['job']:5} {stage['night']}  {stage['images_per_s']:7,.0f} images/s with "
            f"start-up, {stage['images_per_worker_s']:7,.0f} a worker at work"
        )
    lines += ["", f"  AUROC of the unseen kind ({result['unseen_kind']}) on night two, by score"]
    for name, value in result["auroc"].items():
        text = "-     no such score for this model" if value is None else f"{value:.3f}"
        lines.append(f"    {name:22} {text}")
    medians = ", ".join(f"{kind} {p:.3f}" for kind, p in result["median_p_value"].items())
    lines += [f"  median p-value on night two: {medians}"]
    drift = result["drift"]
    if drift is not None and drift["drifted"] is not None:
        found = "drift" if drift["drifted"] else "no drift"
        lines.append(
            f"  night two against the model's own images: {found}, p = {drift['p_value']:.2g} "
            f"(a night may spend {drift['alpha']:.2g})"
        )
    lines.append("")
    option = "" if lake_uri == "./lake" else f" --lake {lake_uri}"
    lines += [
        f"  took {result['seconds']:.0f} s",
        f"  tables   {_shown(lake.uri)}",
        f"  picture  {result['picture']}",
        f"  report   {_shown(report_uri(lake, NAME, NAME, NIGHTS[1]))}",
        "",
        "Try next",
        f"  latentlake query anomalies --model {NAME} --night {NIGHTS[1]} --top 10{option}",
        f"  latentlake query sql '{QUARANTINE_QUERY}'{option}",
        f"  latentlake list{option}",
    ]
    return "\n".join(lines)

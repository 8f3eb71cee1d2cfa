"""Nights that judge themselves: a changed camera and a worse model do not slip through."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.lake.paths import LakePaths
from jobs.query import views
from jobs.tables import catalog
from tests.command_process import CommandProcess
from tests.helpers import Ran, image_bytes, ok, write_source
from tests.prefect_home import ask, wait_until_written

pytestmark = pytest.mark.integration
KEPT = 1500


def write_inverted(path: Path, rows: range) -> None:
    """As by a camera that was changed: black is white."""
    data = []
    for encoded in image_bytes(rows):
        buffer = io.BytesIO()
        pixels = np.asarray(Image.open(io.BytesIO(encoded)))
        Image.fromarray(255 - pixels).save(buffer, "png")
        data.append(buffer.getvalue())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": d, "path": None} for d in data], kind)
    pq.write_table(pa.table({"image": images}), path)


class Nights:
    """One lake, and a config that a test may change from night to night."""

    def __init__(
        self, folder: Path, commands: CommandProcess, dataset: str, images: int = KEPT
    ) -> None:
        """dataset: of no other test, so that runs in the Prefect home are distinguished."""
        self.folder = folder
        self.commands = commands
        self.dataset = dataset
        self.lake = LakePaths((folder / "lake").as_uri())
        self.source = folder / "source"
        write_source(self.source / "a.parquet", range(images))
        self.settings: dict[str, Any] = {
            "lake": str(folder / "lake"),
            "stage": {"source": str(self.source), "dataset": dataset, "channels": 1}
            | {"height": 28, "width": 28},
            "train": {"dataset": dataset, "model": "m", "epochs": 3, "latent_dim": 4}
            | {"network": {"kind": "mlp", "widths": [32]}},
            "embed": {"dataset": dataset, "model": "m", "alpha": 0.5},
            "evaluate": {"samples": 4, "resamples": 200},
            "drift": {"block_images": 4},  # the reference is small
            "gate": {"probe_loss": 1.0},  # and says little about labels
        }

    def run(self, night: str, *more: str) -> dict[str, list[dict[str, Any]]]:
        """Reports by job."""
        told: dict[str, list[dict[str, Any]]] = {}
        for report in ok(self.ran(night, "--json", *more)).json:
            told.setdefault(report["job"], []).append(report)
        return told

    def ran(self, night: str, *more: str) -> Ran:
        path = self.folder / "nightly.yaml"
        path.write_text(yaml.safe_dump(self.settings))
        return self.commands.run("nightly", "--config", path, "--night", night, *more)

    def summary(self) -> str:
        of_this = f"key = 'summary-{self.dataset}'"
        return self._prefect(f"SELECT data FROM artifact WHERE {of_this} ORDER BY created")[-1][0]

    def events(self) -> list[str]:
        wait_until_written(self.commands.prefect_home)
        of_this = f"event LIKE 'latentlake.%' AND resource_id = 'latentlake.dataset.{self.dataset}'"
        asked = f"SELECT event FROM events WHERE {of_this} ORDER BY occurred"
        return [name for (name,) in self._prefect(asked)]

    def page(self, night: str) -> str:
        run = self.folder / "lake" / "runs" / f"night-{self.dataset}-{night}"
        return (run / "report-m.html").read_text()

    def champion(self) -> str:
        return catalog.aliases(self.lake, "m")["champion"]

    def _prefect(self, statement: str) -> list[tuple[Any, ...]]:
        return ask(self.commands.prefect_home, statement)


def test_a_changed_camera_and_a_worse_model_do_not_slip_through(
    tmp_path: Path, commands: CommandProcess
) -> None:
    nights = Nights(tmp_path, commands, "camera")
    first = nights.run("2026-01-01")
    assert list(first) == ["stage", "train", "evaluate", "embed", "drift"]
    champion = nights.champion()

    # A night of another camera.
    write_inverted(nights.source / "b.parquet", range(KEPT, KEPT + 200))
    second = nights.run("2026-01-02")
    assert "train" not in second
    (found,) = second["drift"]
    assert found["counts"]["drifted"] is True
    assert "have drifted" in nights.summary()
    assert "latentlake.drift.found" in nights.events()
    night_two = "WHERE night = '2026-01-02'"
    flagged = views.sql(nights.lake, f"SELECT calibration_valid FROM anomalies {night_two}")
    assert flagged.num_rows
    assert not any(flagged["calibration_valid"].to_pylist())
    assert "calibration" in nights.page("2026-01-02")
    asked = ["--model", "m", "--flagged", "--night", "2026-01-02", "--lake", tmp_path / "lake"]
    assert "drift was found" in ok(commands.run("query", "anomalies", *asked)).out

    # The next night trains because of it, a worse model, which the gate refuses.
    good = nights.settings["train"]
    nights.settings["train"] = good | {"epochs": 1, "learning_rate": 1e-6}
    nights.settings["retrain"] = {"drift": True}
    third = nights.run("2026-01-03")
    (decided,) = third["promote"]
    assert decided["counts"]["promoted"] is False
    assert nights.champion() == champion
    assert "images have drifted" in nights.summary()
    assert decided["counts"]["why"] in nights.summary()
    assert nights.events().count("latentlake.model.promoted") == 1  # the first night's
    assert "train" not in nights.run("2026-01-04")  # it has had those images

    # A better one passes, on a night of the other camera: that it differs is told all the same.
    write_inverted(nights.source / "c.parquet", range(KEPT + 200, KEPT + 400))
    nights.settings["train"] = good | {"epochs": 15}
    fifth = nights.run("2026-01-05", "--retrain")
    (decided,) = fifth["promote"]
    assert decided["counts"]["promoted"] is True, decided
    assert [report["counts"].get("drifted") for report in fifth["drift"]] == [True]
    assert nights.events().count("latentlake.drift.found") == 2
    page = nights.page("2026-01-05")
    assert f"differ from those of m@{champion}" in page
    assert "difference, in pairs" in page

    # Rolled back, it does not come again by itself.
    assert nights.champion() == fifth["train"][0]["counts"]["version"] != champion
    assert nights.events().count("latentlake.model.promoted") == 2
    ok(commands.run("rollback", "m", "--reason", "blurred", "--lake", tmp_path / "lake"))
    assert "promote" not in nights.run("2026-01-06", "--retrain")
    assert "was rolled back: it is not promoted by itself" in nights.summary()
    assert nights.champion() == champion
    runs = views.sql(nights.lake, "SELECT counts FROM runs WHERE job = 'promote' ORDER BY night")
    assert [json.loads(row)["promoted"] for row in runs["counts"].to_pylist()] == [False, True]


def test_a_mistake_in_training_is_told_once_the_champion_has_embedded(
    tmp_path: Path, commands: CommandProcess
) -> None:
    nights = Nights(tmp_path, commands, "mistaken", images=300)
    nights.settings |= {"evaluate": None, "gate": None, "drift": None}
    nights.run("2026-01-01")
    write_source(nights.source / "b.parquet", range(KEPT, KEPT + 60))
    nights.settings["train"] |= {"batch_size": 10**6}
    ran = nights.ran("2026-01-02", "--retrain")
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert "batch_size" in ran.err
    assert "Not done: train m" in nights.summary()
    embedded = views.sql(nights.lake, "SELECT image_id FROM embeddings WHERE night = '2026-01-02'")
    assert embedded.num_rows == 60
    assert "60 were embedded" in nights.page("2026-01-02")

"""What a training tells, and who hears it."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.engine import runner
from jobs.errors import InputError, StorageError
from jobs.lake.paths import LakePaths
from jobs.telemetry import listeners
from jobs.telemetry.listeners import LakeEvents, TensorBoard
from jobs.telemetry.metrics import UNITS, BadStep, Metric, Telemetry, metrics_of
from jobs.train.hardware import choose
from jobs.train.settings import TrainSettings
from tests.inline import InlineTrain

METRIC = Metric("train_nats", 12.5, "nats", 7, 1)


def lines(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(folder.rglob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_events_are_json_lines_in_segments(tmp_path: Path) -> None:
    events = LakeEvents(tmp_path.as_uri(), "a1")
    events.metrics([METRIC])
    events.flush()
    events.bad_step(BadStep(3, "nan", ["x", "y"]))
    events.note("going on")
    events.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1-00000.jsonl", "a1-00001.jsonl"]
    first, bad, note = lines(tmp_path)
    assert {k: first[k] for k in ("event", "name", "value", "unit", "step", "epoch")} == {
        "event": "metric",
        "name": "train_nats",
        "value": 12.5,
        "unit": "nats",
        "step": 7,
        "epoch": 1,
    }
    assert (bad["event"], bad["image_ids"]) == ("bad_step", ["x", "y"])
    assert (note["event"], note["text"]) == ("note", "going on")


def test_telemetry_waits_for_a_lake_that_is_away_and_loses_nothing(tmp_path, monkeypatch) -> None:
    real, away = listeners.create_or_keep, threading.Event()
    away.set()

    def put(uri: str, data: bytes) -> bool:
        if away.is_set():
            raise StorageError("the lake is away")
        return real(uri, data)

    monkeypatch.setattr(listeners, "create_or_keep", put)
    events = LakeEvents(tmp_path.as_uri(), "a1")
    for step in range(3):
        events.metrics([Metric("train_nats", float(step), "nats", step, 1)])
        events.flush()
    assert not list(tmp_path.iterdir())
    away.clear()
    events.close()
    assert [line["value"] for line in lines(tmp_path)] == [0.0, 1.0, 2.0]


def test_tensorboard_files_hold_numbers_histograms_and_pictures(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the format's own module

    board = TensorBoard(tmp_path.as_uri(), "a1")
    board.metrics([METRIC, Metric("kl_nats_D", [0.1, 2.0], "nats", 7, 1)])
    board.flush()
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 4, 3), 9, np.uint8)).save(buffer, "png")
    board.pictures("images", buffer.getvalue(), 8)
    board.close()
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 2
    found: dict[str, object] = {}
    for path in paths:
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                found[value.tag] = value
    assert found["train_nats"].simple_value == 12.5
    assert found["kl_nats_D"].histo.num == 2
    picture = Image.open(io.BytesIO(found["images"].image.encoded_image_string))
    assert picture.size == (4, 5)


def test_a_listener_that_fails_is_left_out_and_the_others_hear_on(caplog) -> None:
    heard: list[str] = []

    class Good:
        def __getattr__(self, name: str):
            return lambda *_: heard.append(name)

    class Broken:
        def __getattr__(self, name: str):
            raise OSError("no more room")

    telemetry = Telemetry([Broken(), Good()])
    telemetry.step({"step": 1, "epoch": 1, "train_nats": 3.0})
    telemetry.epoch({"step": 1, "epoch": 1})
    assert heard == ["metrics", "metrics", "flush"]
    assert caplog.text.count("no more room") == 1


def test_only_what_has_a_unit_is_a_metric() -> None:
    entry = {"step": 4, "epoch": 2, "train_nats": 1.0, "train_kl_nats": None, "other": 3}
    assert metrics_of(entry) == [Metric("train_nats", 1.0, "nats", 4, 2)]


def test_a_training_tells_all_that_it_should(trained: LakePaths, monkeypatch) -> None:
    held: list[Metric] = []
    notes: list[str] = []
    sheets: list[tuple[int, tuple[int, int]]] = []

    class Ear:
        def metrics(self, metrics) -> None:
            held.extend(metrics)

        def note(self, text: str) -> None:
            notes.append(text)

        def pictures(self, name: str, png: bytes, step: int) -> None:
            sheets.append((step, Image.open(io.BytesIO(png)).size))

        def __getattr__(self, name: str):
            return lambda *_: None

    monkeypatch.setattr("tests.inline.TELEMETRY", Telemetry([Ear()]))
    monkeypatch.setattr("jobs.train.loop.BEAT_STEPS", 2)
    monkeypatch.setattr("jobs.train.loop.PICTURES_S", 0.0)
    runner.run(InlineTrain(trained, seed=5, run={"log_s": 0.0}))
    assert {metric.name for metric in held} == set(UNITS)
    by_name = {metric.name: metric for metric in held}
    assert len(by_name["kl_nats_D"].value) == 4
    kl = [m.value for m in held if m.name == "validation_kl_nats"][-1]
    assert sum(by_name["kl_nats_D"].value) == pytest.approx(kl, rel=1e-4)
    assert 0 <= by_name["active_units"].value <= 4
    assert 0.0 <= by_name["data_wait_share"].value < 1.0
    assert by_name["progress"].value == 1.0
    assert all(m.unit == UNITS[m.name] for m in held)
    assert "cpu, float32, eager, 1 thread" in notes[0]
    assert "resident" in notes[0]
    assert [step for step, _ in sheets] == [8, 16]
    assert all(width > 1000 for _, (width, _) in sheets)


def test_mlflow_that_is_asked_for_and_missing_is_told(trained: LakePaths, monkeypatch) -> None:
    import sys

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="pip install mlflow-skinny"):
        listeners.listeners(trained.uri, "a", "m", "v", {})


def test_a_gpu_that_is_not_there_is_told(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = TrainSettings(dataset="d", model="m", run={"device": "cuda"})
    with pytest.raises(InputError, match="the worker has no GPU"):
        choose(settings)
    chosen = choose(TrainSettings(dataset="d", model="m", precision="bfloat16"))
    assert (chosen.device.type, chosen.precision, chosen.compiled) == ("cpu", "bfloat16", False)


def test_settings_of_a_run_that_do_not_fit_are_refused() -> None:
    from jobs.settings import build

    for values, message in (
        ({"workers": 9}, "9 workers cannot share 8 streams"),
        ({"run": {"min_workers": 2}}, "min_workers is more than workers"),
        ({"run": {"micro_batches": 2}, "objective": {"free_bits": 0.1}}, "whole batch"),
        ({"run": {"micro_batches": 2}, "likelihood": {"kind": "optimal_gaussian"}}, "whole batch"),
        ({"run": {"micro_batche": 2}}, "micro_batche"),
    ):
        with pytest.raises(InputError, match=message):
            build(TrainSettings, {"dataset": "d", "model": "m", **values})


def test_how_it_runs_is_no_part_of_the_fingerprint() -> None:
    plain = TrainSettings(dataset="d", model="m")
    other = TrainSettings(dataset="d", model="m", workers=2, run={"data": "streamed", "threads": 2})
    assert plain.fingerprint_of() == other.fingerprint_of()
    assert plain.fingerprint_of() != plain.model_copy(update={"flip": True}).fingerprint_of()

"""Who hears a training: the lake (events, TensorBoard files), Ray, MLflow, a screen."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import override

from jobs.errors import LatentlakeError
from jobs.lake.storage import create_or_keep, join
from jobs.telemetry.metrics import BadStep, Listener, Metric
from jobs.telemetry.mlflow import MLFLOW, Mlflow

log = logging.getLogger("latentlake")

FLUSH_S = 30.0


class _Uploads:
    """Files that go to the lake in the background, in order; tried again while it is away."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="telemetry")
        self._waiting: list[tuple[str, bytes]] = []
        self._running: Future[None] | None = None

    def put(self, name: str, data: bytes) -> None:
        self._waiting.append((name, data))
        self.go_on()

    def go_on(self) -> None:
        if self._waiting and (self._running is None or self._running.done()):
            self._running = self._pool.submit(self._upload, list(self._waiting))

    def _upload(self, files: list[tuple[str, bytes]]) -> None:
        for file in files:
            try:
                create_or_keep(join(self.folder, file[0]), file[1])
            except LatentlakeError as error:
                log.warning("telemetry waits for the lake: %s", error)
                return
            self._waiting.remove(file)

    def close(self) -> None:
        if self._running is not None:
            self._running.result()
        self.go_on()
        self._pool.shutdown(wait=True)


class LakeEvents(Listener):
    """JSON lines in segments `<attempt>-<number>.jsonl`, one object a metric or bad step."""

    def __init__(self, folder: str, attempt: str) -> None:
        self.attempt = attempt
        self._uploads = _Uploads(folder)
        self._lines: list[str] = []
        self._segments = 0
        self._flushed_at = time.monotonic()

    @override
    def metrics(self, metrics: Sequence[Metric]) -> None:
        for metric in metrics:
            self._add({"event": "metric", **dataclasses.asdict(metric)})
        if time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    @override
    def bad_step(self, bad: BadStep) -> None:
        self._add({"event": "bad_step", **dataclasses.asdict(bad)})

    @override
    def note(self, text: str) -> None:
        self._add({"event": "note", "text": text})

    def _add(self, event: dict[str, Any]) -> None:
        self._lines.append(json.dumps({**event, "time_s": round(time.time(), 3)}))

    @override
    def flush(self) -> None:
        self._flushed_at = time.monotonic()
        if self._lines:
            body = "\n".join([*self._lines, ""]).encode()
            self._uploads.put(f"{self.attempt}-{self._segments:05d}.jsonl", body)
            self._lines = []
            self._segments += 1
        else:
            self._uploads.go_on()

    @override
    def close(self) -> None:
        self.flush()
        self._uploads.close()


class TensorBoard(Listener):
    """Event files that TensorBoard reads, in segments of an epoch: objects do not grow."""

    def __init__(self, folder: str, attempt: str) -> None:
        self.attempt = attempt
        self._uploads = _Uploads(folder)
        self._local = tempfile.TemporaryDirectory(prefix="ll-tb-")
        self._segments = 0
        self._writer: Any = None

    def _open(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            suffix = f".{self.attempt}-{self._segments:05d}"
            self._writer = SummaryWriter(self._local.name, filename_suffix=suffix)
        return self._writer

    @override
    def metrics(self, metrics: Sequence[Metric]) -> None:
        for metric in metrics:
            if isinstance(metric.value, list):
                self._open().add_histogram(metric.name, np.array(metric.value), metric.step)
            else:
                self._open().add_scalar(metric.name, metric.value, metric.step)

    @override
    def bad_step(self, bad: BadStep) -> None:
        self._open().add_text("bad_step", f"{bad.reason}: {', '.join(bad.image_ids)}", bad.step)

    @override
    def pictures(self, name: str, png: bytes, step: int) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._open().add_image(name, pixels, step, dataformats="HWC")

    @override
    def flush(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._segments += 1
            for path in sorted(Path(self._local.name).iterdir()):
                self._uploads.put(path.name, path.read_bytes())
                path.unlink()
        self._uploads.go_on()

    @override
    def close(self) -> None:
        self.flush()
        self._uploads.close()
        self._local.cleanup()


class RayMetrics(Listener):
    """Gauges `latentlake_train_…` that Ray serves to Prometheus."""

    def __init__(self, model: str, version: str) -> None:
        self.tags = {"model": model, "version": version}
        self._gauges: dict[str, Any] = {}

    @override
    def metrics(self, metrics: Sequence[Metric]) -> None:
        from ray.util.metrics import Gauge

        for metric in metrics:
            if isinstance(metric.value, list):
                continue
            gauge = self._gauges.get(metric.name)
            if gauge is None:
                name = f"latentlake_train_{metric.name}"
                gauge = Gauge(name, f"{metric.name}, {metric.unit}", tuple(self.tags))
                self._gauges[metric.name] = gauge
            gauge.set(metric.value, self.tags)


class Screen(Listener):
    """Gives what is reported to whoever shows it to people."""

    def __init__(self, show: Callable[[dict[str, Any]], None], say: Callable[[str], None]) -> None:
        self._show = show
        self._say = say

    @override
    def metrics(self, metrics: Sequence[Metric]) -> None:
        if metrics:
            values = {metric.name: metric.value for metric in metrics}
            self._show({**values, "step": metrics[0].step, "epoch": metrics[0].epoch})

    @override
    def note(self, text: str) -> None:
        self._say(text)


def listeners(
    folder: str, attempt: str, model: str, version: str, settings: dict[str, Any]
) -> list[Listener]:
    """All that a training has by default; folder: of its run in the lake."""
    found: list[Listener] = [
        LakeEvents(join(folder, "events"), attempt),
        TensorBoard(join(folder, "tensorboard"), attempt),
    ]
    if os.environ.get(MLFLOW):
        found.append(Mlflow(model, version, settings))
    return found

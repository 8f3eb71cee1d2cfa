"""The lake is unreachable while a training wants to save: it goes on, and the next one lands."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from jobs.engine import runner
from jobs.lake import storage
from jobs.lake.paths import LakePaths
from tests.fault_proxy import Rule, fault_proxy
from tests.faults.test_kills import ROUNDS, kill
from tests.helpers import LATENTLAKE, S3Server, write_source
from tests.inline import InlineStage
from tests.limits import RUN_S, until

pytestmark = pytest.mark.faults

AWAY_S = 60.0 if ROUNDS > 2 else 25.0  # longer than a write is tried
NIGHT = ("--night", "2026-01-01")
SETTINGS = {
    "dataset": "d",
    "model": "m",
    "epochs": 10_000,
    "latent_dim": 4,
    "network": {"kind": "mlp", "widths": [256, 256]},
    "batch_size": 32,
    "run": {"checkpoint_s": 1.0, "log_s": 1.0},
}


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch) -> fsspec.AbstractFileSystem:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()
    return storage.filesystem("s3://lake")[0]


def names(s3: fsspec.AbstractFileSystem, lake: str, what: str) -> list[str]:
    s3.invalidate_cache()
    return sorted(path for path in s3.find(f"{lake}/runs") if what in path)


def told(s3: fsspec.AbstractFileSystem, lake: str) -> list[dict[str, Any]]:
    paths = names(s3, lake, ".jsonl")
    return [json.loads(line) for path in paths for line in s3.cat_file(path).splitlines()]


def test_a_training_goes_on_while_the_lake_is_away(
    s3_server: S3Server, s3: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    lake = f"s3://lake/away-{uuid.uuid4().hex[:8]}"
    write_source(tmp_path / "source" / "a.parquet", range(3000))
    runner.run(InlineStage(LakePaths(lake), tmp_path / "source", rows_per_unit=1000))
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    command = [str(LATENTLAKE), "train", "--config", str(config), "--lake", lake, *NIGHT]
    with fault_proxy(s3_server.endpoint) as proxy, (tmp_path / "err").open("wb") as err:
        env = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint}
        process = subprocess.Popen(command, env=env, stderr=err, start_new_session=True)
        try:
            _until(lambda: len(names(s3, lake, "checkpoints/step-")) > 2, process)
            began = time.time()
            proxy.rules.append(Rule("reset"))
            time.sleep(AWAY_S)
            proxy.rules.clear()
            ended = time.time()
            before = names(s3, lake, "checkpoints/step-")[-1]
            _until(lambda: names(s3, lake, "checkpoints/step-")[-1:] > [before], process)
            _until(lambda: any(event["time_s"] > ended for event in told(s3, lake)), process)
        finally:
            kill(process)
    assert proxy.injected["reset"] >= 3
    events = told(s3, lake)
    assert any("was not saved" in event.get("text", "") for event in events)
    # By one attempt, whose steps were told of all the while, though only later to the lake.
    assert not any("going on from" in event.get("text", "") for event in events)
    during = [e["step"] for e in events if e["event"] == "metric" and began < e["time_s"] < ended]
    assert max(during) - min(during) > 75 * AWAY_S / 25


def _until(reached, process: subprocess.Popen[bytes]) -> None:
    def alive_and_reached() -> bool:
        assert process.poll() is None, "it ended too early"
        return reached()

    until(alive_and_reached, RUN_S, every_s=0.2)

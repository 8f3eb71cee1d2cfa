"""A reader in a loop, that knows nothing of us, while embeddings are replaced and files merged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.lake import storage
from tests.command_process import CommandProcess
from tests.helpers import S3Server, ok, write_source
from tests.limits import END_S

pytestmark = pytest.mark.integration

READER = """
import json, os, pathlib, sys
from deltalake import DeltaTable
uri, stop = sys.argv[1:]
seen = []
while True:
    table = DeltaTable(uri)
    rows = table.to_pyarrow_table(columns=["image_id", "neg_elbo", "job_id"])
    ids = rows["image_id"].to_pylist()
    seen.append((table.version(), len(ids), len(set(ids)), rows["neg_elbo"].null_count))
    if pathlib.Path(stop).exists():
        break
print(json.dumps(seen), flush=True)
os._exit(0)  # deltalake's and pyarrow's threads end the process with an abort, now and then
"""


@pytest.fixture(params=["disk", "s3"])
def lake(
    request, trained_folder: Path, tmp_path: Path, monkeypatch
) -> Iterator[tuple[str, CommandProcess]]:
    """With the process whose commands reach it."""
    if request.param == "disk":
        shutil.copytree(trained_folder / "lake", tmp_path / "lake")
        yield (tmp_path / "lake").as_uri(), request.getfixturevalue("commands")
        return
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()
    uri = f"s3://lake/readers-{uuid.uuid4().hex[:8]}"
    fs, path = storage.filesystem(uri)
    for file in (trained_folder / "lake").rglob("*"):
        if file.is_file():
            fs.put_file(str(file), f"{path}/{file.relative_to(trained_folder / 'lake')}")
    yield uri, request.getfixturevalue("s3_commands")
    storage._filesystem.cache_clear()


def test_it_sees_only_whole_snapshots(lake: tuple[str, CommandProcess], tmp_path: Path) -> None:
    uri, commands = lake
    night = ("--night", "2026-01-01", "--workers", "2", "--lake", uri)
    embed = ("embed", "--dataset", "d", "--model", "m", *night)
    ok(commands.run(*embed))
    stop = tmp_path / "stop"
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, f"{uri}/models/m/embeddings", str(stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ok(commands.run(*embed, "--redo"))
        write_source(tmp_path / "more" / "b.parquet", range(1000, 1100))
        source = ("stage", "--dataset", "d", "--source", tmp_path / "more", "--size", "28")
        ok(commands.run(*source, "--channels", "1", *night))
        ok(commands.run(*embed))
        ok(commands.run("maintain", "--keep-days", "0", *night))
    finally:
        stop.touch()
    out, err = reader.communicate(timeout=END_S)
    assert reader.returncode == 0, err
    seen = json.loads(out)
    assert {tuple(rows) for _, *rows in seen} == {(1000, 1000, 0), (1100, 1100, 0)}
    versions = [version for version, *_ in seen]
    assert versions == sorted(versions)
    assert len(set(versions)) >= 3  # replaced, added to, merged

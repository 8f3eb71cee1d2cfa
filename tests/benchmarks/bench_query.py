"""Queries of 10⁶ × 64 embeddings: beside plain DuckDB and Lance, with an index, on disk and S3.

Two threads; each question twice in a row, the second one timed: files are in the page cache, and a
lake that is held has its connection. Writes `.bench/query.json`.

    python -m tests.benchmarks.bench_query [--rounds 5] [--only disk]
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from jobs.lake import storage
from jobs.query.api import Embeddings
from jobs.query.api import Lake as Asked
from jobs.schemas.vectors import vectors_of
from jobs.search import index
from jobs.search.index import Index
from jobs.tables import catalog
from jobs.tables.delta import open_snapshot
from tests.benchmarks import lance_rival
from tests.benchmarks.bench_embed import FOLDER, lake_of
from tests.benchmarks.rounds import Round, main
from tests.helpers import LATENTLAKE
from tests.s3_server import running_server

ENDING = contextlib.ExitStack()


def asked_lake() -> Asked:
    """10⁶ images embedded in 64 dimensions; made once."""
    tiny = {"network": {"kind": "mlp", "widths": [16]}, "likelihood": {"kind": "gaussian"}}
    lake = lake_of((4, 4, 1), [1_000_000], **tiny, latent_dim=64, score_samples=2)
    done = FOLDER / "done-asked"
    if not done.exists():
        root = lake.uri.removeprefix("file://")
        command = [str(LATENTLAKE), "embed", "--dataset", "d1000000", "--model", "m"]
        subprocess.run([*command, "--lake", root, "--workers", "2"], check=True)
        done.touch()
    return Asked(lake.uri)


def seconds(action: Any) -> float:
    action()
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _among(model: Embeddings, count: int) -> np.ndarray:
    """Queries like the embeddings, and equal to none."""
    rng = np.random.default_rng(0)
    sample = f"USING SAMPLE {count} ROWS (reservoir, 0)"
    rows = model.lake.sql(f"SELECT embedding FROM embeddings {sample}")
    chosen = vectors_of(rows["embedding"])
    return (chosen + 0.3 * chosen.std(0) * rng.normal(size=chosen.shape)).astype(np.float32)


def query_round() -> dict[str, float]:
    """10⁶ × 64 on local disk, two threads: seconds of each question, from a lake just opened."""
    lake = asked_lake()
    pa.set_cpu_count(2)
    snapshot = open_snapshot(lake.model("m", "embeddings"))
    assert snapshot is not None
    files = [uri.removeprefix("file://") for uri in snapshot.file_uris()]
    plain = duckdb.connect(config={"threads": 2})
    listed = ", ".join(f"'{path}'" for path in files)
    plain.execute(f"CREATE VIEW e AS SELECT * FROM read_parquet([{listed}])")
    ((one,),) = plain.sql("SELECT image_id FROM e LIMIT 1 OFFSET 777777").fetchall()
    many = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)

    def fresh() -> Any:
        return lake.embeddings("m")

    held = fresh()
    held.neighbours(one, approximate=False)
    index.build(lake, "m", "cosine")  # minutes, the first time
    embedded = catalog.embeddings_snapshot(lake, "m", held.version)
    found = Index.find(lake, "m", held.version, "cosine", embedded)
    assert found is not None
    near = _among(held, 200)
    exact = held.neighbours(near, approximate=False).select(["query", "image_id"]).to_pylist()
    guessed = held.neighbours(near, approximate=True).select(["query", "image_id"]).to_pylist()
    listed_one = ", ".join(str(float(v)) for v in many[0])
    distance = f"array_cosine_distance(embedding::FLOAT[64], [{listed_one}]::FLOAT[64])"
    return {
        "top 100 by score, s": seconds(lambda: fresh().anomalies(top=100)),
        "plain DuckDB, s": seconds(
            lambda: plain.sql("SELECT image_id FROM e ORDER BY neg_elbo DESC LIMIT 100").fetchall()
        ),
        "look-up by id, s": seconds(
            lambda: lake.sql(f"SELECT image_id, neg_elbo FROM embeddings WHERE image_id = '{one}'")
        ),
        "look-up in plain DuckDB, s": seconds(
            lambda: plain.sql(
                f"SELECT image_id, neg_elbo FROM e WHERE image_id = '{one}'"
            ).fetchall()
        ),
        "10 nearest of one, vectors read for it, s": seconds(
            lambda: fresh().neighbours(many[0], approximate=False)
        ),
        "10 nearest of one, vectors in memory, s": seconds(
            lambda: held.neighbours(many[0], approximate=False)
        ),
        "10 nearest of 100, vectors in memory, s": seconds(
            lambda: held.neighbours(many, approximate=False)
        ),
        "10 nearest of one by the index, ms": 1e3
        * seconds(lambda: found.nearest(near[:1], 10, None)),
        "the same with labels and sources, s": seconds(
            lambda: held.neighbours(near[0], approximate=True)
        ),
        "recall@10 of the index": np.mean([row in exact for row in guessed]),
        "10 nearest of one in plain DuckDB, s": seconds(
            lambda: plain.sql(f"SELECT image_id FROM e ORDER BY {distance} LIMIT 10").fetchall()
        ),
    }


def lance_round() -> dict[str, float]:
    """The same rows in Lance, beside ours in the same round; both have their index."""
    lake = asked_lake()
    pa.set_cpu_count(2)
    snapshot = open_snapshot(lake.model("m", "embeddings"))
    assert snapshot is not None
    held = lake.embeddings("m")
    index.build(lake, "m", "cosine")
    embedded = catalog.embeddings_snapshot(lake, "m", held.version)
    found = Index.find(lake, "m", held.version, "cosine", embedded)
    assert found is not None
    near = _among(held, 100)
    (one,) = lake.sql("SELECT max(image_id) AS i FROM embeddings")["i"].to_pylist()
    files = [uri.removeprefix("file://") for uri in snapshot.file_uris()]
    theirs = lance_rival.ask(FOLDER / "lance", files, one, near)
    look_up = f"SELECT neg_elbo FROM embeddings WHERE image_id = '{one}'"
    best = "SELECT image_id FROM embeddings ORDER BY neg_elbo DESC LIMIT 100"
    ours = {
        "top 100 by score, s": seconds(lambda: lake.sql(best)),
        "look-up by id, s": seconds(lambda: lake.sql(look_up)),
        "10 nearest of one, exact, s": seconds(lambda: held.neighbours(near[0], approximate=False)),
        "10 nearest by the index, ms": 1e3 * seconds(lambda: found.nearest(near[:1], 10, None)),
    }
    named = {f"Lance: {name}": value for name, value in theirs.items()}
    return ours | named


def maintained_lake() -> Asked:
    """The same, its small files merged; made once."""
    folder = FOLDER / "lake-maintained"
    if not folder.exists():
        rough = FOLDER / "lake-being-maintained"
        shutil.rmtree(rough, ignore_errors=True)
        source = Path(asked_lake().uri.removeprefix("file://"))
        shutil.copytree(source, rough, ignore=lambda _, names: {"indexes"} & set(names))
        command = [str(LATENTLAKE), "maintain", "--model", "m", "--no-vacuum"]
        subprocess.run([*command, "--lake", str(rough), "--workers", "2"], check=True)
        rough.rename(folder)
    return Asked(folder.as_uri())


@functools.cache
def _server() -> None:
    """An S3 server on loopback, which ends with this process."""
    os.environ |= ENDING.enter_context(running_server()).environment()


@functools.cache
def _on_s3(local: str) -> Asked:
    _server()
    remote = Asked(f"s3://lake/{Path(local).name}")
    fs, path = storage.filesystem(remote.uri)
    fs.put(local.removeprefix("file://"), path, recursive=True)
    return remote


def s3_round(lake: Asked) -> dict[str, float]:
    """The same questions of both, in seconds on S3, and over those on disk."""
    remote = _on_s3(lake.uri)
    pa.set_cpu_count(2)
    (one,) = lake.sql("SELECT max(image_id) AS i FROM embeddings")["i"].to_pylist()
    look_up = f"SELECT image_id, neg_elbo FROM embeddings WHERE image_id = '{one}'"
    vector = np.random.default_rng(0).normal(size=64).astype(np.float32)
    questions: dict[str, Callable[[Asked], Any]] = {
        "top 100 by score": lambda held: held.embeddings("m").anomalies(top=100),
        "look-up by id": lambda held: held.sql(look_up),
        "10 nearest of one, vectors read for it": lambda held: held.embeddings("m").neighbours(
            vector, approximate=False
        ),
    }
    found = {}
    for name, ask in questions.items():
        there, here = (seconds(lambda a=ask, h=held: a(h)) for held in (remote, lake))
        found |= {f"{name}, s": there, f"{name}, times that on disk": there / here}
    return found


SECTIONS: dict[str, Round] = {
    "disk": query_round,
    "lance": lance_round,
    "s3": lambda: s3_round(maintained_lake()),
    "s3-before-maintain": lambda: s3_round(asked_lake()),
}


if __name__ == "__main__":
    with ENDING:
        main("query", __doc__, SECTIONS)

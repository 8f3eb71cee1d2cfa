"""Capacity: what plan, commit and dispatch cost a driver, from 10³ to 10⁵ units.

Workers are simulated (capacity_driver.py), all else is real; each size and step is a process of
its own. What follows for 10⁹ images on 1,000 workers is in docs/capacity.md. Writes
`.bench/capacity.json`.

    python -m tests.benchmarks.bench_capacity [--rounds 5] [--only plan]
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.stage.plan import shard_rows
from tests.benchmarks.bench_embed import python
from tests.benchmarks.rounds import BENCH, Round, main, write_pictures
from tests.fault_proxy import Seen, fault_proxy
from tests.helpers import S3Server
from tests.inline import InlineStage, InlineTrain
from tests.s3_server import running_server

FOLDER = BENCH / "capacity"
ENDING = contextlib.ExitStack()
SHAPE = (64, 64, 3)
SIZES = (1_000, 10_000, 100_000)  # units
ROWS = 10  # images a unit: few, so that what grows with units is seen
ID_ROWS = 1_000  # where what grows with images is asked
ID_UNITS = (100, 1_000, 10_000)
HANDLES = (2, 1_000)  # of actors; two processes in any case
DISPATCHED = {2: 100_000, 1_000: 20_000}
SHARDS = (1, 2)  # of 128 MiB, for the requests that one more makes
MODEL = {
    "network": {"kind": "mlp", "widths": [16]},
    "likelihood": {"kind": "gaussian"},
    "latent_dim": 8,
    "score_samples": 2,
    "score_batch": 256,
    "epochs": 1,
}


def child(step: str, folder: Path, units: int = 0, rows: int = 0, **env: str) -> dict[str, Any]:
    """A step in a process of its own."""
    module = "tests.benchmarks.capacity_driver"
    done = subprocess.run(
        [sys.executable, "-m", module, step, str(folder), str(units), str(rows)],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        text=True,
    )
    line = done.stdout.splitlines()[-1]
    with (BENCH / "capacity-steps.jsonl").open("a") as kept:  # a round may take an hour
        kept.write(json.dumps([step, units, rows, json.loads(line)]) + "\n")
    return json.loads(line)


@functools.cache
def _base() -> Path:
    """A lake with a model `m`."""
    root = FOLDER / "base"
    if (root / "done").exists():
        return root / "lake"
    shutil.rmtree(root, ignore_errors=True)
    source, shape = root / "source.parquet", (4, 4, 1)
    write_pictures(source, shape, 1500)
    lake = LakePaths((root / "lake").as_uri())
    sizes = dict(zip(("height", "width", "channels"), shape, strict=True))
    runner.run(InlineStage(lake, source, **sizes, array_shape=shape, rows_per_unit=None))
    runner.run(InlineTrain(lake, **MODEL))
    (root / "done").touch()
    return root / "lake"


def fresh(name: str) -> Path:
    root = FOLDER / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    shutil.copytree(_base(), root / "lake")
    return root


def plan_round() -> dict[str, float]:
    """A first night of N units, a night of nothing, a night of one; and the tables afterwards."""
    found: dict[str, float] = {}
    for units in SIZES:
        root = fresh("plan")
        for night, count in (("first", units), ("idle", units), ("one more", units + 1)):
            for kind in ("stage", "embed"):
                told = child(kind, root, count, ROWS)
                expected = {"first": units, "idle": 0, "one more": 1}[night]
                assert told["units"] == expected, told
                found |= _flat(f"{units:,}: {kind}, {night}", told)
        found |= _flat(f"{units:,}: open", child("open", root))
        shutil.rmtree(root)
    return found | _growth(found)


def _flat(name: str, told: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for what, value in told.items():
        if isinstance(value, dict):
            found |= _flat(f"{name}, {what}", value)
        elif what != "units":
            found[f"{name}, {what}"] = float(value)
    return found


def _growth(found: dict[str, float]) -> dict[str, float]:
    """Exponents: 1 is as units grow, 2 as their square."""
    small, large = (f"{units:,}: " for units in SIZES[-2:])
    exponents = {}
    for name, value in found.items():
        before = found.get(small + name.removeprefix(large), 0.0)
        if name.startswith(large) and "seconds, " in name and value > 1.0 and before > 0.0:
            exponents[f"exponent of {name.removeprefix(large)}"] = math.log10(value / before)
    return exponents


def ids_round() -> dict[str, float]:
    """Memory for image ids: of the driver in an idle night, and of a worker."""
    found: dict[str, float] = {}
    for units in ID_UNITS:
        root = fresh("ids")
        images = units * ID_ROWS
        child("stage", root, units, ID_ROWS)
        child("embed", root, units, ID_ROWS)
        held = child("ids", root)
        idle = child("embed", root, units, ID_ROWS)
        more = child("stage", root, units + 1, ID_ROWS)
        again = child("embed", root, units + 1, ID_ROWS)
        told = {
            "a worker holds, bytes an image": held["held, bytes an image"],
            "a worker at the most, bytes an image": held["at the most, bytes an image"],
            "a worker reads ids, s": held["seconds"],
            "idle embed, plan, s": idle["seconds"]["plan"],
            "embed of one more unit, s": again["whole run, s"],
            "stage of one more unit, s": more["whole run, s"],
        }
        for night, one in (("idle", idle), ("one more", again)):
            most = max(one["peak MiB"].values()) - one["begun MiB"]
            told[f"driver of embed, {night}, bytes an image"] = most * 2**20 / images
        found |= _flat(f"{images:,} images", told)
        shutil.rmtree(root)
    return found


DISPATCH = """
    import json, sys, time
    from jobs.cluster import actor_pool, executor
    from jobs.cluster.settings import RaySettings
    from jobs.cluster.worker import Workers
    from jobs.lake.paths import LakePaths
    from jobs.engine.progress import Progress
    from jobs.engine.plan import Plan, Unit
    from tests.benchmarks.capacity_driver import IdleWorker

    uri, units, handles = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    times, drain, add = [], actor_pool.drain, Progress.add

    def many(actors, units, progress, keep):
        # Each of the two stands for as many workers: the driver's work is that of all of them.
        drain(list(actors) * (handles // 2), units, progress, keep=handles)

    def counted(progress, counts):
        times.append((time.perf_counter(), time.process_time()))
        add(progress, counts)

    actor_pool.drain, Progress.add = many, counted
    plan = Plan(
        job="embed", target="m", fingerprint="f", night="2026-01-01", base={}, settings={},
        units=[Unit.of("f", {"path": f"{n:064d}", "span": [0, 8192]}) for n in range(units)],
    )
    started = time.perf_counter()
    context = plan.context
    context_s = time.perf_counter() - started
    executor.run_units(
        IdleWorker, LakePaths(uri), plan, plan.units, workers=Workers(2),
        ray_settings=RaySettings(cpus=2), report_count="embedded",
    )
    assert len(times) == units
    wall, cpu = (last - first for first, last in zip(times[0], times[-1]))
    print(json.dumps({
        "units a second": (units - 1) / wall,
        "driver's processor, µs a unit": 1e6 * cpu / (units - 1),
        "a plan's context, s": context_s,
    }))
"""


def dispatch_round() -> dict[str, float]:
    """Empty units through the real pool. With 1,000 handles two processes stand for 1,000."""
    found: dict[str, float] = {}
    for handles in HANDLES:
        root = FOLDER / "dispatch"
        shutil.rmtree(root, ignore_errors=True)
        arguments = (root.as_uri(), str(DISPATCHED[handles]), str(handles))
        _, told = python(DISPATCH, *arguments)
        found |= _flat(f"{handles:,} workers", json.loads(told))
        shutil.rmtree(root)
    return found


@functools.cache
def _server() -> S3Server:
    """One a process, as clients keep its credentials."""
    return ENDING.enter_context(running_server())


def s3_round() -> dict[str, float]:
    """Requests that one more shard of 128 MiB makes, by step and kind: the difference of two."""
    few, many = (_requests(shards) for shards in SHARDS)
    found = {
        f"{name}, requests a shard": (many[name] - few[name]) / (SHARDS[1] - SHARDS[0])
        for name in sorted(many | few)
    }
    return found | {f"{name}, requests at {SHARDS[0]} shards": few[name] for name in sorted(few)}


def _write_noise(path: Path, count: int) -> None:
    """Pixels that nothing compresses, so that a shard has its 128 MiB."""
    kind, generator = pa.binary(math.prod(SHAPE)), np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("image", kind)]), compression="none") as writer:
        for start in range(0, count, 1024):
            here = min(1024, count - start)
            data = pa.py_buffer(generator.bytes(here * kind.byte_width))
            column = pa.Array.from_buffers(kind, here, [None, data])
            writer.write_table(pa.table({"image": column}))


S3_JOB = """
    import sys
    from jobs.engine import runner
    from jobs.lake.paths import LakePaths
    from tests.benchmarks.bench_capacity import MODEL, SHAPE
    from tests.inline import InlineEmbed, InlineStage, InlineTrain
    lake, step, source = LakePaths(sys.argv[1]), sys.argv[2], sys.argv[3]
    if step == "embed":
        runner.run(InlineEmbed(lake, dataset="d", scores="none"))
    elif step == "train":
        runner.run(InlineTrain(lake, dataset="few", **MODEL))
    else:
        sizes = dict(zip(("height", "width", "channels"), SHAPE))
        made = InlineStage(lake, source, **sizes, array_shape=SHAPE, rows_per_unit=None)
        made.target = step.removeprefix("stage ")
        made.settings = made.settings.model_copy(update={"dataset": made.target})
        runner.run(made)
"""


def _requests(shards: int) -> Counter[str]:
    """Of a lake on S3, its source on disk; the proxy counts from outside of what it counts."""
    found: Counter[str] = Counter()
    FOLDER.mkdir(parents=True, exist_ok=True)
    lake = f"s3://lake/{uuid.uuid4().hex}"
    for name, count in (("few", 1500), ("d", shards * shard_rows(SHAPE))):
        _write_noise(FOLDER / f"{name}.parquet", count)
    with fault_proxy(_server().endpoint) as proxy:
        os.environ |= _server().environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}
        for step in ("stage few", "train", "stage d", "embed", "embed", "stage d"):
            before = len(proxy.requests)
            source = (
                FOLDER / f"{step[-3:]}.parquet" if step == "stage few" else FOLDER / "d.parquet"
            )
            python(S3_JOB, lake, step, str(source))
            name = f"idle {step}" if any(k.startswith(f"{step}: ") for k in found) else step
            for seen in proxy.requests[before:]:
                found[f"{name}: {_kind(seen)}"] += 1
                found[f"{name}: {_kind(seen)} of {_place(seen)}"] += 1
    (FOLDER / "d.parquet").unlink()
    return Counter({k: v for k, v in found.items() if not k.startswith(("train", "stage few"))})


def _kind(seen: Seen) -> str:
    """As S3's price list has them: writes and lists, reads, and what is free."""
    if seen.method == "DELETE" or (seen.method == "POST" and "delete" in seen.query):
        return "free"
    listed = seen.method == "GET" and "list-type" in seen.query
    return "PUT and LIST" if listed or seen.method in ("PUT", "POST") else "GET"


def _place(seen: Seen) -> str:
    where = unquote(f"{seen.path}?{seen.query}")
    known = ("_delta_log", "/units/", "/images/", "/sources/", "/embeddings/", "/bundles/")
    return next((name.strip("/") for name in known if name in where), "the rest")


SECTIONS: dict[str, Round] = {
    "plan": plan_round,
    "ids": ids_round,
    "dispatch": dispatch_round,
    "s3": s3_round,
}


if __name__ == "__main__":
    with ENDING:
        main("capacity", __doc__, SECTIONS)

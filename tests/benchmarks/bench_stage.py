"""Staging: speed against a bare loop and against Ray Data's own template; memory; the idle rerun.

Everything runs on the same cores, one after the other within a round, and is given as medians of
the rounds. Steady speed is the extra images over the extra seconds of a larger source, so that
start-up, which is given apart, is in neither. Writes `.bench/stage.json`.

    python -m tests.benchmarks.bench_stage [--rounds 5] [--cores 2]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.benchmarks import watched
from tests.benchmarks.rounds import BENCH, last_cores, tell
from tests.helpers import LATENTLAKE

FOLDER = BENCH / "stage"
DISTINCT = 20_000
SIDE = 256


def photo(seed: int) -> bytes:
    """A JPEG of 256×256 with soft shapes, sharp edges and grain, as photographs have."""
    import io

    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(soft).astype(np.int16)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    for _ in range(4):
        left, top = generator.integers(0, SIDE, 2)
        inside = (x - left) ** 2 + (y - top) ** 2 < generator.integers(20, 60) ** 2
        pixels[inside] += generator.integers(-90, 90, 3, dtype=np.int16)
    pixels += generator.normal(0, 5, pixels.shape).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=88)
    return buffer.getvalue()


def write_photos(folder: Path, count: int) -> Path:
    """`count` files; beyond the distinct ones they are the same pictures with other bytes."""
    done = folder / "done"
    if done.exists() and done.read_text() == str(count):
        return folder / "images"
    shutil.rmtree(folder, ignore_errors=True)
    first = FOLDER / f"photos-{DISTINCT}" / "images"
    if count <= DISTINCT:
        with ProcessPoolExecutor() as pool:
            data = pool.map(photo, range(count), chunksize=100)
            for number, encoded in enumerate(data):
                _write(folder / "images", number, encoded)
    else:
        for number in range(count):
            source = _path(first, number % DISTINCT).read_bytes()
            # After the end mark: another file to a hash, the same picture to a decoder.
            _write(folder / "images", number, source + number.to_bytes(4, "big"))
    done.write_text(str(count))
    return folder / "images"


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number // 1000:04d}" / f"{number:07d}.jpg"


def _write(folder: Path, number: int, data: bytes) -> None:
    path = _path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tiny(path: Path, count: int) -> Path:
    """Parquet of tiny images, each another one."""
    import io

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 10_000):
            images = []
            for number in range(start, min(start + 10_000, count)):
                buffer = io.BytesIO()
                pixels = np.frombuffer(number.to_bytes(16, "big"), np.uint8).reshape(4, 4)
                Image.fromarray(pixels).save(buffer, "bmp")
                images.append(buffer.getvalue())
            labels = list(range(start, start + len(images)))
            writer.write_table(pa.table({"image": images, "label": labels}, schema=schema))
    return path


def ideal(folder: Path, cores: int) -> float:
    """Seconds of a bare loop: read, decode and resize in as many processes as cores."""
    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    code = """
        import sys, simplejpeg
        from PIL import Image
        for path in sys.stdin.read().split():
            with open(path, "rb") as file:
                data = file.read()
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=64, min_width=64)
            if pixels.shape[:2] != (64, 64):
                Image.fromarray(pixels).resize((64, 64), Image.Resampling.HAMMING)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    started = time.perf_counter()
    shares = [paths[start::cores] for start in range(cores)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in shares]
    for process, share in zip(running, shares, strict=True):
        assert process.stdin is not None
        process.stdin.write("\n".join(share))
        process.stdin.close()
    assert [process.wait() for process in running] == [0] * cores
    return time.perf_counter() - started


def template(folder: Path, cores: int) -> float:
    """Seconds of Ray Data's own way: read_images, then write_parquet."""
    out = FOLDER / "template"
    shutil.rmtree(out, ignore_errors=True)
    code = f"""
        import ray
        ray.init(address="local", num_cpus={cores}, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.read_images({str(folder)!r}, size=(64, 64), mode="RGB").write_parquet({str(out)!r})
    """
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        env=environment,
        capture_output=True,
    )
    return time.perf_counter() - started


def stage(source: Path, cores: int, *options: str, memory: bool = False) -> dict[str, Any]:
    """Seconds of a whole `latentlake stage`, what it told, and its memory."""
    lake = FOLDER / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    command = [str(LATENTLAKE), "stage", "--source", str(source), "--dataset", "d", "--json"]
    command += ["--lake", str(lake), "--workers", str(cores), *options]
    ran = watched.run(command, memory=memory)
    return {
        "seconds": ran.seconds,
        "job_seconds": ran.told["seconds"],
        "unit_seconds": ran.told["counts"]["unit_seconds"],
        "rows": ran.told["counts"]["rows_in"],
        "driver_mib": ran.driver_mib,
        "worker_mib": ran.worker_mib,
    }


def idle_rerun(folder: Path) -> float:
    """Job seconds of a rerun over a source whose every file is known."""
    lake = FOLDER / "idle-lake"
    code = f"""
        import time
        from jobs.engine import runner
        from jobs.cluster.settings import RaySettings
        from jobs.stage.settings import StageSettings
        from jobs.lake.paths import LakePaths
        from jobs.stage.job import StageJob
        settings = StageSettings(
            source={str(folder)!r}, dataset="d", height=4, width=4, channels=1, max_refused=1.0
        )
        lake = LakePaths({lake.as_uri()!r})
        if not {lake.exists()}:
            runner.run(StageJob(lake, settings, "2026-01-01", RaySettings(cpus=2)))
        started = time.perf_counter()
        assert runner.run(StageJob(lake, settings, "2026-01-02", RaySettings(cpus=2))).units == 0
        print(time.perf_counter() - started)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def steady(small: float, large: float, images: int) -> float:
    """Images a second between two runs that differ by `images`."""
    return images / (large - small)


def speed_round(cores: int, large: int) -> dict[str, float]:
    few = write_photos(FOLDER / f"photos-{DISTINCT}", DISTINCT)
    many = write_photos(FOLDER / f"photos-{large}", large)
    more = large - DISTINCT
    bare = steady(ideal(few, cores), ideal(many, cores), more)
    first, second = stage(few, cores), stage(many, cores)
    ours = steady(first["seconds"], second["seconds"], more)
    half = write_photos(FOLDER / f"photos-{DISTINCT // 4}", DISTINCT // 4)
    small, whole = template(half, cores), template(few, cores)
    rays = steady(small, whole, DISTINCT - DISTINCT // 4)
    return {
        "ideal images/s": bare,
        "latentlake images/s": ours,
        "Ray Data template images/s": rays,
        "share of the ideal": ours / bare,
        "times the template": ours / rays,
        "latentlake start-up s": first["seconds"] - DISTINCT / ours,
        "template start-up s": whole - DISTINCT / rays,
    }


def scaling_round(cores: int, small: int, large: int) -> dict[str, float]:
    options = ("--size", "4", "--channels", "1")
    sources = [write_tiny(FOLDER / f"tiny-{count}.parquet", count) for count in (small, large)]
    one, ten = (stage(source, cores, *options, memory=True) for source in sources)
    few, many = (run["unit_seconds"] / run["rows"] * 1e6 for run in (one, ten))
    return {
        f"µs a row and worker, {small:,} rows": few,
        f"µs a row and worker, {large:,} rows": many,
        "time a row, ratio": many / few,
        "driver MiB, few rows": one["driver_mib"],
        "driver MiB, many rows": ten["driver_mib"],
        "worker MiB, few rows": one["worker_mib"],
        "worker MiB, many rows": ten["worker_mib"],
        "driver memory, ratio": ten["driver_mib"] / one["driver_mib"],
        "worker memory, ratio": ten["worker_mib"] / one["worker_mib"],
    }


def idle_round(files: int) -> dict[str, float]:
    folder = FOLDER / f"idle-{files}"
    if not folder.exists():
        for number in range(files):
            path = folder / f"{number // 1000:04d}" / f"{number:07d}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"BM" + number.to_bytes(4, "big"))  # refused, and known as such
    return {f"idle rerun over {files:,} files, job s": idle_rerun(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 1_000_000])
    parser.add_argument("--only", choices=["speed", "scaling", "idle"], action="append")
    args = parser.parse_args()
    last_cores(args.cores)
    os.environ["OMP_NUM_THREADS"] = "1"
    sections = {
        "speed": lambda: speed_round(args.cores, args.images),
        "scaling": lambda: scaling_round(args.cores, *args.rows),
        "idle": lambda: idle_round(100_000),
    }
    tell("stage", sections, args.only, args.rounds)


if __name__ == "__main__":
    main()

"""Embedding: against the bare forward loop and Ray Data's template; each score; memory.

Both sides of a comparison run one after the other within a round, on the same two cores; what is
told is medians of the rounds. Steady speed is the extra images over the extra seconds of a larger
dataset, so that start-up, which is given apart, is in neither. Writes `.bench/embed.json`.

    python -m tests.benchmarks.bench_embed [--rounds 5] [--only speed]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bundles import bundle as bundles
from jobs.bundles.bundle import Bundle
from jobs.datasets.splits import pixels_of
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.tables import catalog
from tests.benchmarks import watched
from tests.benchmarks.rounds import BENCH, Round, main, write_pictures
from tests.helpers import LATENTLAKE
from tests.inline import InlineEmbed, InlineStage, InlineTrain
from vae_core.scores.per_image import Scorer, complexity_bits

FOLDER = BENCH / "embed"
SHAPE = (32, 32, 3)
FEW, MANY = 20_000, 240_000
MODEL = {
    "network": {"kind": "conv", "widths": [32, 64, 128]},
    "likelihood": {"kind": "gaussian"},
    "latent_dim": 64,
    "score_samples": 10,
    "score_batch": 256,
    "batch_size": 128,
    "epochs": 1,
}


def lake_of(shape: tuple[int, int, int], counts: list[int], **model: Any) -> LakePaths:
    """Datasets `d<count>` of random pictures and a model `m` trained on a small one; made once."""
    name = "x".join(map(str, (*shape, *counts)))
    lake = LakePaths((FOLDER / f"lake-{name}").as_uri())
    done = FOLDER / f"done-{name}"
    if not done.exists():
        shutil.rmtree(FOLDER / f"lake-{name}", ignore_errors=True)
        for count in (1500, *counts):
            source = FOLDER / "source.parquet"
            write_pictures(source, shape, count)
            stage = InlineStage(lake, source, **_sizes(shape), array_shape=shape)
            stage.target = f"d{count}"
            stage.settings = stage.settings.model_copy(update={"dataset": stage.target})
            runner.run(stage)
            source.unlink()
        runner.run(InlineTrain(lake, dataset="d1500", **{**MODEL, **model}))
        done.touch()
    return lake


def _sizes(shape: tuple[int, int, int]) -> dict[str, Any]:
    return dict(zip(("height", "width", "channels"), shape, strict=True)) | {"rows_per_unit": None}


def embed(lake: LakePaths, count: int, *options: str, memory: bool = False) -> dict[str, Any]:
    """Seconds of `latentlake embed` of a dataset that is not embedded yet, as users run it."""
    root = Path(lake.uri.removeprefix("file://"))
    for table in ("embeddings", "reconstructions", "anomalies", "batches"):
        shutil.rmtree(root / "models" / "m" / table, ignore_errors=True)
    shutil.rmtree(root / "units", ignore_errors=True)
    kept = FOLDER / "catalog-before"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(root / "catalog", kept)
    command = [str(LATENTLAKE), "embed", "--dataset", f"d{count}", "--model", "m", "--json"]
    command += ["--lake", str(root), "--workers", "2", "--night", "2026-01-01", *options]
    ran = watched.run(command, memory=memory)
    assert ran.told["counts"]["embedded"] == count
    shutil.rmtree(root / "catalog")
    shutil.move(kept, root / "catalog")
    return {
        "seconds": ran.seconds,
        "unit_seconds": ran.told["counts"]["unit_seconds"],
        "driver_mib": ran.driver_mib,
        "worker_mib": ran.worker_mib,
    }


def loaded(lake: LakePaths) -> Bundle:
    return bundles.load(lake, *catalog.resolve_model(lake, "m"))


def pixels_of_dataset(lake: LakePaths, count: int, most: int) -> tuple[np.ndarray, list[str]]:
    found = catalog.images_snapshot(lake, f"d{count}").read(["image_id", "image"])
    assert found is not None
    rows = found.slice(0, most)
    return pixels_of(rows["image"], SHAPE), rows["image_id"].to_pylist()


BARE = """
    import sys, time
    import torch
    from jobs.lake.paths import LakePaths
    from tests.benchmarks.bench_embed import loaded, pixels_of_dataset
    torch.set_num_threads(2)
    model = loaded(LakePaths(sys.argv[1])).network()
    pixels = torch.from_numpy(pixels_of_dataset(LakePaths(sys.argv[1]), 20_000, 20_000)[0].copy())
    with torch.inference_mode():
        def run():
            for start in range(0, len(pixels), 256):
                x = pixels[start : start + 256].permute(0, 3, 1, 2).float().div_(255.0)
                model.encoder(x.contiguous()).numpy()
        run()
        started = time.perf_counter()
        run()
    print(len(pixels) / (time.perf_counter() - started))
"""

TEMPLATE = """
    import sys, time
    import numpy as np, ray, torch
    from jobs.lake.paths import LakePaths
    from tests.benchmarks.bench_embed import loaded
    uri, source, out = sys.argv[1:]

    class Embedder:
        def __init__(self):
            torch.set_num_threads(1)
            self.model = loaded(LakePaths(uri)).network()

        def __call__(self, batch):
            flat = np.frombuffer(b"".join(batch["image"]), np.uint8)
            x = torch.from_numpy(flat.copy()).reshape(-1, 32, 32, 3)
            with torch.inference_mode():
                x = x.permute(0, 3, 1, 2).contiguous().float().div_(255.0)
                mean, log_var = self.model.encoder(x).chunk(2, dim=1)
            return {
                "image_id": batch["image_id"],
                "embedding": mean.numpy(),
                "embedding_log_var": log_var.numpy(),
            }

    # One CPU more than actors: they would starve the reads.
    ray.init(address="local", num_cpus=3, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_parquet(source, columns=["image_id", "image"]).map_batches(
        Embedder, batch_size=256, compute=ray.data.ActorPoolStrategy(size=2)
    ).write_parquet(out)
"""


def python(code: str, *arguments: str) -> tuple[float, str]:
    """Seconds of a process, and what it printed last."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - started, (done.stdout.splitlines() or [""])[-1]


def speed_round() -> dict[str, float]:
    """Embedding alone: images a second beyond the start."""
    lake, more = lake_of(SHAPE, [FEW, MANY]), MANY - FEW
    bare = float(python(BARE, lake.uri)[1])
    few = embed(lake, FEW, "--scores", "none")["seconds"]
    many = embed(lake, MANY, "--scores", "none")["seconds"]
    rays = []
    for count in (FEW, MANY):
        out = FOLDER / "template"
        shutil.rmtree(out, ignore_errors=True)
        images = catalog.images_snapshot(lake, f"d{count}")
        rays.append(python(TEMPLATE, lake.uri, images.uri, str(out))[0])
    ours, theirs = more / (many - few), more / (rays[1] - rays[0])
    return {
        "bare forward loop, images/s": bare,
        "latentlake, images/s": ours,
        "Ray Data's template, images/s": theirs,
        "share of the bare loop": ours / bare,
        "times the template": ours / theirs,
        "latentlake, start-up s": few - FEW / ours,
        "template, start-up s": rays[0] - FEW / theirs,
    }


def scores_round() -> dict[str, float]:
    """One thread, in this process: what each thing costs, µs an image, at K = 10."""
    lake = lake_of(SHAPE, [FEW, MANY])
    bundle = loaded(lake)
    scorer = bundle.scorer()
    pixels, ids = pixels_of_dataset(lake, FEW, 2048)

    def cost(action: Any) -> float:
        action()
        started = time.perf_counter()
        action()
        return 1e6 * (time.perf_counter() - started) / len(pixels)

    def samples(count: int) -> Scorer:
        return Scorer(
            model=scorer.model,
            batch_size=scorer.batch_size,
            samples=count,
            seed=scorer.seed,
            moments=scorer.moments,
            heldout_neg_elbo=scorer.heldout_neg_elbo,
        )

    codes = cost(lambda: scorer.encode(pixels, ids))
    one, ten = (cost(lambda k=k: samples(k).score(pixels, ids)) for k in (1, 10))
    bits = cost(lambda: complexity_bits(pixels))
    return {
        "codes alone, µs": codes,
        "all scores at K = 10, µs": ten,
        "of it each posterior sample (decode and likelihood), µs": (ten - one) / 9,
        "of it complexity_bits, µs": bits,
        "of it the reconstruction's own scores (recon_mse, max_patch_error, …), µs": ten
        - codes
        - bits
        - (ten - one) / 9 * 10,
    }


def size_round() -> dict[str, float]:
    """10⁴ and 10⁶ tiny images, all scores: time an image beyond the start, and memory."""
    shape, counts = (4, 4, 1), [10_000, 500_000, 1_000_000]
    tiny = {"network": {"kind": "mlp", "widths": [16]}, "likelihood": {"kind": "gaussian"}}
    lake = lake_of(shape, counts, **tiny, latent_dim=8, score_samples=2)
    small, half, large = (embed(lake, count, memory=True) for count in counts)
    first = (half["seconds"] - small["seconds"]) / (counts[1] - counts[0])
    second = (large["seconds"] - half["seconds"]) / (counts[2] - counts[1])
    return {
        "µs an image, from 10⁴ to 5·10⁵": 1e6 * first,
        "µs an image, from 5·10⁵ to 10⁶": 1e6 * second,
        "time, ratio": second / first,
        "driver MiB, 10⁴": small["driver_mib"],
        "driver MiB, 10⁶": large["driver_mib"],
        "driver memory, ratio": large["driver_mib"] / small["driver_mib"],
        "worker MiB, 10⁴": small["worker_mib"],
        "worker MiB, 10⁶": large["worker_mib"],
        "worker memory, ratio": large["worker_mib"] / small["worker_mib"],
    }


def write_round() -> dict[str, float]:
    """What writing the table is of a unit's time, 64 dimensions, all scores and codes alone."""
    from jobs.embed import worker

    lake = lake_of(SHAPE, [FEW, MANY])
    found = {}
    for scores in ("all", "none"):
        spent: list[float] = []
        real = worker.write_shard

        def timed(*arguments: Any, spent: list[float] = spent, real: Any = real) -> Any:
            started = time.perf_counter()
            output = real(*arguments)
            spent.append(time.perf_counter() - started)
            return output

        root = Path(lake.uri.removeprefix("file://"))
        copy = FOLDER / "write-lake"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("datasets", "catalog", "models"):
            shutil.copytree(root / name, copy / name, symlinks=True)
        for table in ("embeddings", "reconstructions", "anomalies", "batches"):
            shutil.rmtree(copy / "models" / "m" / table, ignore_errors=True)
        work = InlineEmbed(LakePaths(copy.as_uri()), dataset="d1500", scores=scores)
        worker.write_shard = timed
        try:
            report = runner.run(work)
        finally:
            worker.write_shard = real
        found[f"share of writing, scores {scores}"] = sum(spent) / report.counts["unit_seconds"]
        shutil.rmtree(copy)
    return found


SECTIONS: dict[str, Round] = {
    "speed": speed_round,
    "scores": scores_round,
    "size": size_round,
    "write": write_round,
}


if __name__ == "__main__":
    main("embed", __doc__, SECTIONS)

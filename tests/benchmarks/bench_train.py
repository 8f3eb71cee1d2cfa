"""Training: against a bare PyTorch loop, the loader alone, worker counts, size; pythae, Ray's own.

Each comparison runs both sides one after the other within a round, on the same cores and threads;
what is told is medians of the rounds. Writes `.bench/train.json`.

    python -m tests.benchmarks.bench_train [--rounds 5] [--only loop]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.datasets.splits import find_splits
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from jobs.train.data.loader import RankShare, Resident, Streamed
from jobs.train.data.sample_order import Order
from tests.benchmarks import pythae_rival, ray_template
from tests.benchmarks.bare_loop import CASES, bare_rate
from tests.benchmarks.rounds import BENCH, Round, main, write_pictures
from tests.helpers import LATENTLAKE
from tests.inline import InlineStage, InlineTrain
from vae_core.model import to_unit_range

FOLDER = BENCH / "train"


def staged(shape: tuple[int, int, int], count: int) -> LakePaths:
    """A lake with a dataset `d` of soft random pictures, made once."""
    name = "x".join(map(str, (*shape, count)))
    lake = LakePaths((FOLDER / f"lake-{name}").as_uri())
    if (FOLDER / f"done-{name}").exists():
        return lake
    shutil.rmtree(FOLDER / f"lake-{name}", ignore_errors=True)
    source = FOLDER / f"source-{name}.parquet"
    write_pictures(source, shape, count)
    height, width, channels = shape
    settings = {"height": height, "width": width, "channels": channels, "rows_per_unit": None}
    runner.run(InlineStage(lake, source, array_shape=shape, **settings))
    source.unlink()
    (FOLDER / f"done-{name}").touch()
    return lake


def train(lake: LakePaths, **settings: Any) -> dict[str, Any]:
    """The history's last entry of a training without Ray, in this process; nothing is kept."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        # Its own lake, whose dataset is the other's.
        root = Path(folder)
        (root / "datasets").symlink_to(Path(lake.uri.removeprefix("file://")) / "datasets")
        (root / "catalog").symlink_to(Path(lake.uri.removeprefix("file://")) / "catalog")
        work = InlineTrain(LakePaths(root.as_uri()), **settings)
        return _history(work)[-1]


def _history(work: InlineTrain) -> list[dict[str, Any]]:
    from jobs.train.loop import Training
    from jobs.train.rank import Rank

    plan = work.plan()
    training = Training(work.order_of(plan, plan.units[0]), Rank())
    training.run()
    return training.position.history


def loop_round(epochs: int = 2) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, case in CASES.items():
        lake = staged(case.shape, case.images)
        ours = train(lake, epochs=epochs, **case.settings)["images_per_s"]
        bare = bare_rate(case, int(0.8 * case.images), epochs)
        found |= {
            f"{name}: latentlake images/s": ours,
            f"{name}: bare loop images/s": bare,
            f"{name}: share of the bare loop": ours / bare,
        }
    return found


def loader_round() -> dict[str, float]:
    """One thread, 32×32×3, up to the normalised float batch."""
    shape = (32, 32, 3)
    split = find_splits(_uris(staged(shape, 100_000)), shape)["train"]
    order = Order(
        group_rows=tuple(group.rows for group in split.groups),
        seed=0,
        streams=8,
        window_rows=16384,
    )
    part = RankShare(split, order, 128)
    resident, streamed = Resident(part), Streamed(part)
    pixels, rows = resident._pixels, torch.randperm(part.rows)

    def rate(batches: Iterator[Tensor]) -> float:
        started = time.perf_counter()
        count = sum(len(to_unit_range(batch)) for batch in batches)
        return count / (time.perf_counter() - started)

    bare = rate(
        torch.index_select(pixels, 0, rows[start : start + 128])
        for start in range(0, part.rows, 128)
    )
    ours = rate(share.pixels_NHWC for share in resident.shares(0))
    read = rate(share.pixels_NHWC for share in streamed.shares(0))
    return {
        "gather and cast, images/s": bare,
        "resident, images/s": ours,
        "streamed from disk, images/s": read,
        "resident, share of gather and cast": ours / bare,
    }


def _uris(lake: LakePaths) -> list[str]:
    from jobs.tables import catalog

    return catalog.images_snapshot(lake, "d", None).file_uris()


def command(lake: LakePaths, settings: dict[str, Any]) -> dict[str, Any]:
    """`latentlake train` as users run it: its bundle's history, and seconds to the first step."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        root, held = Path(folder), Path(lake.uri.removeprefix("file://"))
        (root / "datasets").symlink_to(held / "datasets")
        shutil.copytree(held / "catalog", root / "catalog")
        config = root / "train.yaml"
        config.write_text(json.dumps({"dataset": "d", "model": "m", **settings}))
        started = time.time()
        done = subprocess.run(
            [str(LATENTLAKE), "train", "--config", str(config), "--lake", str(root), "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        version = json.loads(done.stdout)["counts"]["version"]
        about = root / "models" / "m" / "bundles" / version / "model.json"
        events = [
            json.loads(line)
            for path in sorted(root.glob("runs/*/events/*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        first = next(event["time_s"] for event in events if event["event"] == "note")
        return {"first_step_s": first - started, **json.loads(about.read_text())}


def start_up_round() -> dict[str, float]:
    """From the start of the process, Ray included, to the first step; and the whole rest."""
    case = CASES["mlp 28x28x1"]
    told = command(staged(case.shape, case.images), {**case.settings, "epochs": 1})
    return {"start of the process to the first step, s": told["first_step_s"]}


def workers_round() -> dict[str, float]:
    """Workers of one thread each, convolutional; images a second of the last of two epochs."""
    case = CASES["conv 32x32x3"]
    lake = staged(case.shape, case.images)
    rates = [
        command(lake, {**case.settings, "epochs": 2, "workers": workers})["history"][-1]
        for workers in (1, 2)
    ]
    one, two = (entry["images_per_s"] for entry in rates)
    return {"one worker, images/s": one, "two workers, images/s": two, "times": two / one}


def size_round() -> dict[str, float]:
    """An epoch, streamed, over 10⁴ and 10⁶ images: time an image, and the process's memory."""
    found: dict[str, float] = {}
    for count in (10_000, 1_000_000):
        lake = staged((16, 16, 1), count)
        code = f"""
            import json, resource, torch
            torch.set_num_threads(1)
            from jobs.lake.paths import LakePaths
            from tests.benchmarks.bench_train import train
            entry = train(
                LakePaths({lake.uri!r}), epochs={2 if count < 100_000 else 1}, batch_size=128,
                network={{"kind": "mlp", "widths": [64]}}, latent_dim=8,
                run={{"data": "streamed"}},
            )
            entry["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(entry))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            check=True,
            capture_output=True,
            text=True,
        )
        entry = json.loads(done.stdout.splitlines()[-1])
        found[f"µs an image, {count:,} images"] = 1e6 / entry["images_per_s"]
        found[f"MiB, {count:,} images"] = entry["mib"]
    few, many = (found[f"µs an image, {count:,} images"] for count in (10_000, 1_000_000))
    small, large = (found[f"MiB, {count:,} images"] for count in (10_000, 1_000_000))
    return {**found, "time, ratio": many / few, "memory, ratio": large / small}


def template_round() -> dict[str, float]:
    """Ray's own template, read_parquet → streaming_split → iter_torch_batches, same models."""
    found: dict[str, float] = {}
    for name, case in CASES.items():
        lake = staged(case.shape, case.images)
        theirs = ray_template.rate(name, FOLDER / f"template-{name.replace(' ', '-')}")
        ours = command(lake, {**case.settings, "epochs": 3})["history"][-1]["images_per_s"]
        found |= {
            f"{name}: latentlake images/s": ours,
            f"{name}: Ray's template images/s": theirs,
            f"{name}: times the template": ours / theirs,
        }
    return found


def pythae_round(epochs: int = 20) -> dict[str, float]:
    """784-500-500-50, batch 128, two threads, the same learning rates; binarised Fashion-MNIST.

    The bound is of the same held-out images.
    """
    lake = pythae_rival.fashion(FOLDER)
    settings = {
        "network": {"kind": "mlp", "widths": [500, 500], "activation": "relu"},
        "likelihood": {"kind": "bernoulli", "binarisation": "threshold"},
        "latent_dim": 50,
        "batch_size": 128,
        "epochs": epochs,
        "warmup_steps": 0,
        "learning_rate": 2e-3,
    }
    torch.set_num_threads(2)
    ours = train(lake, **settings)
    torch.set_num_threads(1)
    theirs = pythae_rival.run(FOLDER, lake, epochs)
    return {
        "latentlake images/s": ours["images_per_s"],
        "pythae images/s": theirs["images_per_s"],
        "times pythae": ours["images_per_s"] / theirs["images_per_s"],
        "latentlake validation, nats": ours["validation_nats"],
        "pythae validation, nats": theirs["validation_nats"],
    }


SECTIONS: dict[str, Round] = {
    "loader": loader_round,
    "loop": loop_round,
    "start-up": start_up_round,
    "workers": workers_round,
    "size": size_round,
    "template": template_round,
    "pythae": pythae_round,
}


if __name__ == "__main__":
    main("train", __doc__, SECTIONS)

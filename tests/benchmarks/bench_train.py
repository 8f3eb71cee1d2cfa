"""Training: against a bare PyTorch loop, the loader alone, worker counts, size; pythae, Ray's own.

Each comparison runs both sides one after the other within a round, on the same cores and threads;
what is told is medians of the rounds. Writes `.bench/train.json`.

    python -m tests.benchmarks.bench_train [--rounds 5] [--only loop]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from jobs import job
from jobs.lake import Lake
from jobs.loader import Part, Resident, Streamed
from jobs.order import Order
from jobs.split import find_splits
from tests.benchmarks.bench_stage import BENCH, median_of
from tests.inline import InlineStage, InlineTrain
from vae_core.autoencoder import to_unit_range

FOLDER = BENCH / "train"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and images for it. network: of the settings; images: staged."""

    shape: tuple[int, int, int]
    network: dict[str, Any]
    images: int
    batch: int
    latent: int = 32

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "latent_dim": self.latent,
            "batch_size": self.batch,
            "likelihood": {"kind": "bernoulli", "binarisation": "stochastic"}
            if self.shape[2] == 1
            else {"kind": "gaussian"},
        }


CASES = {
    "mlp 28x28x1": Case((28, 28, 1), {"kind": "mlp", "widths": [500, 500]}, 20_000, 128, 50),
    "conv 32x32x3": Case((32, 32, 3), {"kind": "conv", "widths": [32, 64, 128]}, 6_000, 128),
    "conv 64x64x3": Case((64, 64, 3), {"kind": "conv", "widths": [32, 64, 128]}, 2_500, 128),
}


def staged(shape: tuple[int, int, int], count: int) -> Lake:
    """A lake with a dataset `d` of soft random pictures, made once."""
    name = "x".join(map(str, (*shape, count)))
    lake = Lake((FOLDER / f"lake-{name}").as_uri())
    if (FOLDER / f"done-{name}").exists():
        return lake
    shutil.rmtree(FOLDER / f"lake-{name}", ignore_errors=True)
    source = FOLDER / f"source-{name}.parquet"
    source.parent.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape))
    kind = pa.binary(size)
    generator = np.random.default_rng(0)
    with pq.ParquetWriter(source, pa.schema([("image", kind)])) as writer:
        for start in range(0, count, 5000):
            here = min(5000, count - start)
            rough = generator.integers(0, 256, (here, 4, 4, shape[2]), dtype=np.uint8)
            pixels = rough.repeat(-(-shape[0] // 4), 1).repeat(-(-shape[1] // 4), 2)
            pixels = np.ascontiguousarray(pixels[:, : shape[0], : shape[1]]).reshape(here, size)
            # Each another picture.
            pixels[:, :4] = np.arange(start, start + here, dtype=np.uint32)[:, None].view(np.uint8)
            held = pa.Array.from_buffers(kind, here, [None, pa.py_buffer(pixels)])
            writer.write_table(pa.table({"image": held}))
    height, width, channels = shape
    settings = {"height": height, "width": width, "channels": channels, "rows_per_unit": None}
    job.run(InlineStage(lake, source, array_shape=shape, **settings))
    source.unlink()
    (FOLDER / f"done-{name}").touch()
    return lake


def train(lake: Lake, **settings: Any) -> dict[str, Any]:
    """The history's last entry of a training without Ray, in this process; nothing is kept."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        # Its own lake, whose dataset is the other's.
        root = Path(folder)
        (root / "datasets").symlink_to(Path(lake.uri.removeprefix("file://")) / "datasets")
        (root / "catalog").symlink_to(Path(lake.uri.removeprefix("file://")) / "catalog")
        work = InlineTrain(Lake(root.as_uri()), **settings)
        return _history(work)[-1]


def _history(work: InlineTrain) -> list[dict[str, Any]]:
    from jobs.rank import Rank
    from jobs.training import Training

    plan = work.plan()
    training = Training(work.order_of(plan, plan.units[0]), Rank())
    training.run()
    return training.position.history


class Bare(nn.Module):
    """The same VAE as anyone would write it: encoder, decoder, loss in one function."""

    def __init__(self, case: Case, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.bernoulli = case.shape[2] == 1

    def forward(self, x: Tensor) -> Tensor:
        if self.bernoulli:
            x = torch.bernoulli(x)
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        out = self.decoder(z)
        if self.bernoulli:
            recon = nn.functional.binary_cross_entropy_with_logits(out, x, reduction="sum")
        else:
            recon = 0.5 * (out - x).square().sum()
        kl = -0.5 * (1.0 + log_var - mean.square() - log_var.exp()).sum()
        return (recon + kl) / len(x)


def bare_rate(case: Case, rows: int, epochs: int) -> float:
    """Images a second over the last of some epochs, pixels in memory as float."""
    from jobs.config import TrainSettings
    from vae_core.autoencoder import Autoencoder

    torch.manual_seed(0)
    settings = TrainSettings.model_validate({"dataset": "d", "model": "m", **case.settings})
    made = Autoencoder(settings.model_config_of(case.shape))
    model = Bare(case, made.encoder, made.decoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    height, width, channels = case.shape
    x = torch.rand(rows, channels, height, width)
    rate = 0.0
    for _ in range(epochs):
        order = torch.randperm(rows)
        started = time.perf_counter()
        for start in range(0, rows, case.batch):
            optimizer.zero_grad(set_to_none=True)
            model(x[order[start : start + case.batch]]).backward()
            optimizer.step()
        rate = rows / (time.perf_counter() - started)
    return rate


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
    part = Part(split, order, 128)
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


def _uris(lake: Lake) -> list[str]:
    from jobs import catalog

    return catalog.images_snapshot(lake, "d", None).file_uris()


SECTIONS: dict[str, Callable[[], dict[str, float]]] = {
    "loader": loader_round,
    "loop": loop_round,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(SECTIONS), action="append")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-2:]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    report = BENCH / "train.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    held = json.loads(report.read_text()) if report.exists() else {}
    for name in args.only or SECTIONS:
        held[name] = median_of(args.rounds, SECTIONS[name])
        report.write_text(json.dumps(held, indent=1))
        for what, found in held[name].items():
            low, high = found["range"]
            sys.stdout.write(f"{what}: {found['median']:,.2f} ({low:,.2f} – {high:,.2f})\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

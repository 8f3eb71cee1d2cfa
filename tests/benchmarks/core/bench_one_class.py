"""One-class anomaly detection: train on one kind of image, find the other nine in the test set.

Mean AUROC over the ten kinds, over seeds. The model and the judging score, recon_nll, were chosen
on MNIST's training images alone (kinds 2 and 8, a tenth of them held out) before these runs.
Anchors on MNIST: Deep SVDD 94.8 (Ruff et al. 2018), a VAE about 97 (Perera et al. 2019,
"OCGAN"). Writes `.bench/one-class-<data>.json`.

    python -m tests.benchmarks.core.bench_one_class --data mnist
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch

from tests.benchmarks.core.data import Data, Split, fashion_mnist, mnist
from tests.benchmarks.core.models import fit, score
from tests.benchmarks.core.report import Report
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig
from vae_core.scores.names import SCORES
from vae_core.stats.metrics import auroc

JUDGE = "recon_nll"
DATA = {"mnist": mnist, "fashion-mnist": fashion_mnist}
MODEL = ModelConfig(
    image_shape=(28, 28, 1),
    latent_dim=32,
    network=NetworkConfig(kind="mlp", widths=(512, 256)),
    likelihood=LikelihoodConfig(kind="gaussian", sigma=0.1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(DATA), default="mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = DATA[args.data]()
    report = Report(f"one-class-{args.data}", vars(args))
    by_seed: dict[str, list[float]] = defaultdict(list)
    by_kind: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(args.seeds):
        kinds: dict[str, list[float]] = defaultdict(list)
        for kind in range(10):
            for name, value in one(data, kind, seed, args.epochs).items():
                kinds[name].append(value)
            report.curve({"seed": seed, "kind": kind, "auroc": kinds[JUDGE][-1]})
        for name, values in kinds.items():
            by_seed[name].append(float(np.mean(values)))
            by_kind[name].append(values)
    report.set(
        judge=JUDGE,
        mean_auroc={name: float(np.mean(values)) for name, values in by_seed.items()},
        auroc_of_seeds=dict(by_seed),
        auroc_of_kinds={name: np.mean(v, axis=0).tolist() for name, v in by_kind.items()},
    )
    report.save()


def one(data: Data, kind: int, seed: int, epochs: int) -> dict[str, float]:
    """AUROC of every score, with one kind as the normal one."""
    normal = data.train.where(np.flatnonzero(data.train.labels_N == kind))
    # Every tenth image is held out, for the score that needs the held-out mean.
    held = np.arange(len(normal)) % 10 == 0
    train, heldout = normal.where(np.flatnonzero(~held)), normal.where(np.flatnonzero(held))
    model, moments = fit(MODEL, train, epochs=epochs, seed=seed)
    nats = float(score(model, moments, 0.0, heldout).nats_N.mean())
    return aurocs(score(model, moments, nats, data.test).scores, data.test, kind)


def aurocs(scores: dict, test: Split, kind: int) -> dict[str, float]:
    anomalous = test.labels_N != kind
    return {
        name: auroc(values, anomalous)
        for name, values in scores.items()
        if values is not None and name in SCORES
    }


if __name__ == "__main__":
    main()

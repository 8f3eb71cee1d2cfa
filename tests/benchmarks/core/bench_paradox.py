"""The likelihood paradox: train on one of MNIST and Fashion-MNIST, score the other as anomalous.

AUROC of every score in both directions (Nalisnick et al. 2019, "Do deep generative models know
what they don't know?"; the correction by complexity: Serrà et al. 2020), and a linear probe of the
posterior mean beside PCA of the same dimension on each model's own labels. Writes
`.bench/paradox.json`.

    python -m tests.benchmarks.core.bench_paradox
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from tests.benchmarks.core.data import Data, Split, fashion_mnist, mnist
from tests.benchmarks.core.models import fit, score
from tests.benchmarks.core.report import Report
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig
from vae_core.families.linear import PixelSums, ProbabilisticPCA
from vae_core.stats.metrics import auroc
from vae_core.stats.probe import LinearProbe

MODEL = ModelConfig(
    image_shape=(28, 28, 1),
    latent_dim=32,
    network=NetworkConfig(kind="conv", widths=(32, 64), hidden=256),
    likelihood=LikelihoodConfig(kind="logistic_mixture", components=5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = Report("paradox", vars(args))
    sets = [fashion_mnist(), mnist()]
    for inside, outside in (sets, sets[::-1]):
        report.set(**direction(inside, outside, args.epochs, report))
    report.save()


def direction(inside: Data, outside: Data, epochs: int, report: Report) -> dict[str, object]:
    held = np.arange(len(inside.train)) % 20 == 0
    train = inside.train.where(np.flatnonzero(~held))

    def each_epoch(epoch: int, nats: float, seconds: float) -> None:
        report.curve({"epoch": epoch, "train_nats": nats, "seconds": seconds})

    model, moments = fit(MODEL, train, epochs=epochs, each_epoch=each_epoch)
    heldout = float(
        score(model, moments, 0.0, inside.train.where(np.flatnonzero(held))).nats_N.mean()
    )
    normal, strange = (score(model, moments, heldout, d.test) for d in (inside, outside))
    found = {}
    for name, values in normal.scores.items():
        others = strange.scores[name]
        if values is not None and others is not None:
            both = np.concatenate([values, others])
            found[name] = auroc(both, np.arange(len(both)) >= len(values))
    nats = {d.name: float(s.nats_N.mean()) for d, s in ((inside, normal), (outside, strange))}
    bits = normal.scores["bits_per_dim"]
    assert bits is not None
    trained = score(model, moments, heldout, inside.train)
    return {
        f"{inside.name} against {outside.name}": found,
        f"mean neg_elbo of a model of {inside.name}": nats,
        f"bits_per_dim of {inside.name}": float(bits.mean()),
        f"probe of {inside.name}": probe(inside, trained.mean_ND, normal.mean_ND),
    }


def probe(data: Data, train_ND: np.ndarray, test_ND: np.ndarray) -> dict[str, float]:
    """Test accuracy of a linear classifier on the posterior mean, and on PCA of that dimension."""
    dim = train_ND.shape[1]
    sums = PixelSums.zeros(torch.full((data.train.pixels_NHWC[0].size,), 0.5))
    for start in range(0, len(data.train), 5000):
        sums.add(_flat(data.train, slice(start, start + 5000)))
    pca = ProbabilisticPCA.fit(sums, dim)
    everything = slice(None)
    return {
        "posterior mean": accuracy(data, torch.from_numpy(train_ND), torch.from_numpy(test_ND)),
        "pca": accuracy(
            data,
            pca.project(_flat(data.train, everything)),
            pca.project(_flat(data.test, everything)),
        ),
    }


def _flat(split: Split, rows: slice) -> torch.Tensor:
    return torch.from_numpy(split.pixels_NHWC[rows]).flatten(1).double() / 255.0


def accuracy(data: Data, train_ND: torch.Tensor, test_ND: torch.Tensor) -> float:
    labels = [torch.from_numpy(split.labels_N.copy()) for split in (data.train, data.test)]
    return LinearProbe.fit(train_ND, labels[0], l2=1e-5).accuracy(test_ND, labels[1])


if __name__ == "__main__":
    main()

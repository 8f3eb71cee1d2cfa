"""Variance of the encoder's gradient: score function with a leave-one-out baseline, against
reparameterisation, on binarised images of the sample that ships, at the start and after training.

Writes `docs/pictures/gradient-variance.png` and `.bench/gradient-variance.json`.

    python -m tests.benchmarks.core.bench_gradient_variance
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib import pyplot as plt

from jobs.imaging.decode import decode
from tests.benchmarks.core.report import Report
from vae_core.autoencoder import Autoencoder
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.model import to_unit_range
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import Objective
from vae_core.training.step import train_step

ROOT = Path(__file__).parents[3]
SAMPLES = (2, 4, 8, 16, 32, 64)
DRAWS = 200
MODEL = ModelConfig(
    image_shape=(28, 28, 1),
    latent_dim=8,
    network=NetworkConfig(kind="mlp", widths=(64, 64)),
    likelihood=LikelihoodConfig(kind="bernoulli"),
)


def main() -> None:
    torch.set_num_threads(1)
    x = sample_images(64)
    report = Report("gradient-variance", {"draws": DRAWS, "images": len(x)})
    torch.manual_seed(0)
    model = Autoencoder(MODEL)
    found = {"at the start": curves(model, x)}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    objective = Objective(model, ObjectiveConfig())
    for step in range(1000):
        noise = StepNoise(seed=1, step=step, batch=len(x))
        train_step(objective, optimizer, x, noise, step=step)
    found["after 1,000 steps"] = curves(model, x)
    report.set(samples=SAMPLES, variance=found)
    report.save()
    picture(found, ROOT / "docs" / "pictures" / "gradient-variance.png")


def sample_images(count: int) -> torch.Tensor:
    (path,) = (ROOT / "flows" / "sample").glob("*.parquet")
    column = pq.read_table(path)["image"].slice(0, count).to_pylist()
    pixels = np.stack([decode(row["bytes"], (28, 28, 1)).pixels_HWC for row in column])
    return to_unit_range(torch.from_numpy(pixels))


def curves(model: Autoencoder, x: torch.Tensor) -> dict[str, list[float]]:
    """Summed variance of the mean-loss gradient of the encoder, for each K."""
    return {
        "score function": [variance(model, x, kind="score_function", samples=k) for k in SAMPLES],
        # K independent samples average K one-sample gradients.
        "reparameterised": [variance(model, x) / k for k in SAMPLES],
    }


def variance(model: Autoencoder, x: torch.Tensor, **settings) -> float:
    objective = Objective(model, ObjectiveConfig(**settings))
    parameters = list(model.encoder.parameters())
    rows = []
    for step in range(DRAWS):
        loss = objective(x, StepNoise(seed=2, step=step, batch=len(x)), 0).loss_N.mean()
        gradients = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return float(torch.stack(rows).double().var(0).sum())


def picture(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    figure, axes = plt.subplots(
        1, len(found), figsize=(8.5, 3.4), sharey=True, layout="constrained"
    )
    for axis, (title, lines) in zip(axes, found.items(), strict=True):
        for (name, values), style in zip(lines.items(), ("o-", "s--"), strict=True):
            axis.loglog(SAMPLES, values, style, label=name, base=2)
            axis.set_yscale("log")
        axis.set(title=title, xlabel="posterior samples K", xticks=SAMPLES, xticklabels=SAMPLES)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("variance of the encoder's gradient\n(summed over parameters, nats²)")
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

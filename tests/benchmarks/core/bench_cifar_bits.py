"""CIFAR-10: bits per dimension of a flat VAE, residual networks, discretised logistic mixture.

Anchors, both hierarchical: LVAE 3.59 (Maaløe et al. 2019, "BIVA"), VDVAE 2.87 (Child 2021).
Writes `.bench/cifar-bits.json`.

    python -m tests.benchmarks.core.bench_cifar_bits
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

from tests.benchmarks.core.data import Split, cifar10
from tests.benchmarks.core.report import Report
from vae_core.autoencoder import Autoencoder
from vae_core.bounds import log_likelihood
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.families.baselines import IndependentValues, ValueCounts
from vae_core.model import to_unit_range
from vae_core.noise import StepNoise
from vae_core.objectives.objectives import Objective
from vae_core.size import forward_flops, parameter_count
from vae_core.training.step import learning_rate, train_step

SEED, RATE = 0, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--depth", type=int, nargs="+", default=[0, 1, 1])
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--components", type=int, default=5)
    parser.add_argument("--train-images", type=int, default=50_000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    data = cifar10()
    test = data.test.where(np.arange(args.test_images))
    model = Autoencoder(
        ModelConfig(
            image_shape=(32, 32, 3),
            latent_dim=args.latent_dim,
            network=NetworkConfig(
                kind="residual", widths=tuple(args.widths), depth=tuple(args.depth)
            ),
            likelihood=LikelihoodConfig(kind="logistic_mixture", components=args.components),
        )
    ).to(args.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    report = Report("cifar-bits", vars(args))
    report.set(
        parameters=parameter_count(model),
        forward_flops=forward_flops(model),
        independent_values_bits_per_dim=without_latents(data.train, test),
    )
    train(model, data.train.where(np.arange(args.train_images)), test, args, report)
    report.model(model)
    report.set(
        test_bits_per_dim=bits_per_dim(model, test, samples=1, device=args.device),
        test_bits_per_dim_32_samples=bits_per_dim(
            model, test.where(np.arange(min(1000, len(test)))), samples=32, device=args.device
        ),
        test_images=len(test),
    )
    report.save()


def train(
    model: Autoencoder, images: Split, test: Split, args: argparse.Namespace, report: Report
) -> None:
    objective = Objective(model, ObjectiveConfig(kl_warmup_steps=500))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    batches = -(-len(images) // args.batch)
    seconds, step = 0.0, 0
    some = test.where(np.arange(min(500, len(test))))
    for epoch in range(args.epochs):
        started = time.monotonic()
        order = np.random.Generator(np.random.Philox(key=[SEED, epoch])).permutation(len(images))
        loss = 0.0
        for rows in np.array_split(order, batches):
            rate = learning_rate(
                step, total_steps=batches * args.epochs, base=RATE, warmup_steps=200
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            pixels = torch.from_numpy(images.pixels_NHWC[rows]).to(args.device)
            noise = StepNoise(seed=SEED, step=step, batch=len(rows))
            x = to_unit_range(pixels).contiguous(memory_format=torch.channels_last)
            done = train_step(objective, optimizer, x, noise, step=step, clip_norm=20_000.0)
            loss += done.recon_nll + done.kl
            step += 1
        seconds += time.monotonic() - started
        report.curve(
            {
                "epoch": epoch + 1,
                "train_bits_per_dim": loss / len(images) / (model.config.pixels * math.log(2.0)),
                "test_bits_per_dim_500": bits_per_dim(model, some, samples=1, device=args.device),
                "seconds": seconds,
            }
        )
    report.set(updates=step, train_seconds=seconds)


def without_latents(train: Split, test: Split) -> float:
    """What the model of independent pixel values reaches."""
    pixels = [torch.from_numpy(s.pixels_NHWC.reshape(len(s), -1)) for s in (train, test)]
    counts = ValueCounts.zeros(pixels[0].shape[1])
    for part in pixels[0].split(1000):
        counts.add(part)
    model = IndependentValues.fit(counts)
    nats = torch.cat([model.log_prob(part) for part in pixels[1].split(1000)])
    return -float(nats.mean()) / (pixels[0].shape[1] * math.log(2.0))


@torch.no_grad()
def bits_per_dim(model: Autoencoder, images: Split, *, samples: int, device: str) -> float:
    """−log₂ of the importance-weighted bound a value; samples = 1: the one-sample ELBO."""
    total = 0.0
    generator = torch.Generator(device).manual_seed(SEED)
    for start in range(0, len(images), 50):
        x = to_unit_range(torch.from_numpy(images.pixels_NHWC[start : start + 50])).to(device)
        shape = (len(x), model.config.latent_dim)
        found = log_likelihood(
            model,
            model.observe(x),
            lambda _, shape=shape: torch.randn(shape, generator=generator, device=device),
            samples=samples,
            chunk=8,
        )
        total -= float(found.sum())
    return total / (len(images) * model.config.pixels * math.log(2.0))


if __name__ == "__main__":
    main()

"""MNIST, dynamically binarised: test log-likelihood of a VAE and of IWAE-5 (Burda et al. 2016).

One stochastic layer of 50 latents, 200-200 tanh each way, as in the paper's table 1. Both models
are trained for the same number of updates. Writes `.bench/mnist-bound-<model>.json`.

    python -m tests.benchmarks.core.bench_mnist_bound --model vae --epochs 400
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.core.data import mnist
from tests.benchmarks.core.report import Report
from vae_core.autoencoder import Autoencoder
from vae_core.bounds import log_likelihood
from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.model import to_unit_range
from vae_core.noise import ImageNoise, StepNoise
from vae_core.objectives.objectives import Objective
from vae_core.training.step import learning_rate, train_step

OBJECTIVES = {
    "vae": ObjectiveConfig(),
    "iwae5": ObjectiveConfig(kind="importance_weighted", samples=5),
    "iwae50": ObjectiveConfig(kind="importance_weighted", samples=50),
}
SEED = 0
MODEL = ModelConfig(
    image_shape=(28, 28, 1),
    latent_dim=50,
    network=NetworkConfig(kind="mlp", widths=(200, 200), activation="tanh"),
    likelihood=LikelihoodConfig(kind="bernoulli", binarisation="stochastic"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(OBJECTIVES), default="vae")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--glorot", action="store_true", help="initialise as the paper does")
    parser.add_argument("--name", help="of the report; mnist-bound-<model> if none")
    parser.add_argument("--samples", type=int, default=5000, help="K of the test estimate")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = mnist()
    x_train = to_unit_range(torch.from_numpy(data.train.pixels_NHWC)).to(args.device)
    x_test = to_unit_range(torch.from_numpy(data.test.pixels_NHWC[: args.test_images]))
    report = Report(args.name or f"mnist-bound-{args.model}", vars(args))
    torch.manual_seed(SEED)
    model = Autoencoder(MODEL).to(args.device)
    if args.glorot:
        glorot(model)
    train(model, x_train, x_test.to(args.device), args, report)
    report.model(model)
    model.eval()
    started = time.monotonic()
    values = np.concatenate(
        [
            estimate(model, x, start, args.samples).cpu().numpy()
            for x, start in test_batches(x_test.to(args.device), 100)
        ]
    )
    report.set(
        test_log_likelihood_nats=float(values.mean()),
        standard_error_nats=float(values.std(ddof=1) / len(values) ** 0.5),
        test_elbo_nats=elbo(model, x_test.to(args.device)),
        test_images=len(values),
        estimate_seconds=time.monotonic() - started,
    )
    report.save()


def train(
    model: Autoencoder, x_train: Tensor, x_test: Tensor, args: argparse.Namespace, report: Report
) -> None:
    objective = Objective(model, OBJECTIVES[args.model])
    optimizer = torch.optim.Adam(model.parameters(), lr=args.rate, fused=True)
    epochs, steps = args.epochs, len(x_train) // args.batch
    seconds, step = 0.0, 0
    for epoch in range(epochs):
        started = time.monotonic()
        order = np.random.Generator(np.random.Philox(key=[SEED, epoch])).permutation(len(x_train))
        loss = 0.0
        for rows in np.split(order, steps):
            rate = learning_rate(step, total_steps=steps * epochs, base=args.rate, warmup_steps=0)
            for group in optimizer.param_groups:
                group["lr"] = rate
            noise = StepNoise(seed=SEED, step=step, batch=args.batch)
            loss += train_step(objective, optimizer, x_train[rows], noise, step=step).loss
            step += 1
        seconds += time.monotonic() - started
        entry = {"epoch": epoch + 1, "train_loss_nats": loss / len(x_train), "seconds": seconds}
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            entry["test_elbo_nats"] = elbo(model, x_test)
        report.curve(entry)
    report.set(updates=step, train_seconds=seconds)


def glorot(model: Autoencoder) -> None:
    """Glorot & Bengio 2010, as in Burda et al. 2016, section 5."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)


def test_batches(x_NCHW: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    for start in range(0, len(x_NCHW), size):
        yield x_NCHW[start : start + size], start


def noise_of(start: int, count: int, device: torch.device) -> ImageNoise:
    """One fixed binarisation of the test set: image i draws the noise of key (0, i)."""
    keys = torch.stack([torch.zeros(count), torch.arange(start, start + count)], dim=1)
    return ImageNoise(seed=SEED, keys_N2=keys.long().to(device))


@torch.no_grad()
def elbo(model: Autoencoder, x_NCHW: Tensor) -> float:
    """Mean one-sample ELBO of the test images, in nats."""
    total = 0.0
    for x, start in test_batches(x_NCHW, 500):
        noise = noise_of(start, len(x), x.device)
        target = model.observe(x, noise)
        posterior = model.encode(target)
        kl_ND = model.kl(posterior)
        assert kl_ND is not None
        params = model.decode(model.draw(posterior, noise.sample(0, MODEL.latent_dim)))
        log_prob = model.likelihood.log_prob(params, model.likelihood.scale(), target)
        total += float((log_prob - kl_ND.sum(1)).double().sum())
    return total / len(x_NCHW)


def estimate(model: Autoencoder, x_NCHW: Tensor, start: int, samples: int) -> Tensor:
    """log p(x) of a batch by K importance samples, (N,) in nats."""
    target = model.observe(x_NCHW, noise_of(start, len(x_NCHW), x_NCHW.device))
    generator = torch.Generator(x_NCHW.device).manual_seed(SEED + start)
    shape = (len(x_NCHW), MODEL.latent_dim)

    def draw(_: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=x_NCHW.device)

    return log_likelihood(model, target, draw, samples=samples, chunk=50)


if __name__ == "__main__":
    main()

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from vae_core.config import LikelihoodConfig, ModelConfig, NetworkConfig, ObjectiveConfig
from vae_core.likelihoods import LIKELIHOODS
from vae_core.noise import step_noise
from vae_core.training import NonFiniteLoss, learning_rate, loss_sum, train_step
from vae_core.vae import VAE

GOLDEN = Path(__file__).parents[2] / "golden" / "losses.json"


def model_of(kind: str, likelihood: str) -> VAE:
    torch.manual_seed(0)
    return VAE(
        ModelConfig(
            image_shape=(8, 9, 1),
            latent_dim=3,
            network=NetworkConfig(kind=kind, widths=(6, 5), hidden=12),
            likelihood=LikelihoodConfig(kind=likelihood),
        )
    )


def images(count: int) -> torch.Tensor:
    rows = torch.arange(count * 72, dtype=torch.float32).reshape(count, 1, 8, 9)
    return torch.sin(rows * 0.37).square()


def trace(kind: str, likelihood: str, steps: int = 12) -> list[float]:
    model, x = model_of(kind, likelihood), images(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for step in range(steps):
        sums = train_step(
            model,
            model,
            optimizer,
            x,
            step_noise(seed=0, step=step, batch=32, dim=3),
            objective=ObjectiveConfig(kl_warmup_steps=5),
            step=step,
            global_count=32,
        )
        losses.append((sums.recon_nll + sums.kl) / sums.images)
    return losses


@pytest.mark.parametrize(
    "name", [f"{network}-{kind}" for network in ("mlp", "conv") for kind in LIKELIHOODS]
)
def test_golden_losses(name: str) -> None:
    """A refactor reproduces these; a change of the maths says so and writes them anew."""
    torch.set_num_threads(1)
    found = trace(*name.split("-"))
    assert found[-1] < found[0]
    assert found == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-5, abs=1e-5)


def test_shares_of_unequal_size_give_the_gradient_of_the_whole_batch() -> None:
    """Ranks that hold 5, 3 and 0 images of 8; DDP averages their gradients."""
    model, x, eps = model_of("mlp", "gaussian").double(), images(8).double(), torch.randn(8, 3)
    eps = eps.double()

    def gradients(rows: slice, world_size: int) -> list[torch.Tensor]:
        rank = copy.deepcopy(model)
        total, _, _ = loss_sum(rank, rank(x[rows], eps[rows]), x[rows], 1.0)
        (total * (world_size / 8)).backward()
        return [p.grad for p in rank.parameters()]  # type: ignore[misc]

    whole = gradients(slice(0, 8), 1)
    ranks = [gradients(rows, 3) for rows in (slice(0, 5), slice(5, 8), slice(8, 8))]
    for together, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        torch.testing.assert_close(sum(parts) / 3, together)


def test_a_non_finite_loss_stops_before_the_optimiser_moves_anything() -> None:
    model, x = model_of("mlp", "gaussian"), images(4)
    x[2, 0, 0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    with pytest.raises(NonFiniteLoss, match="step 7"):
        train_step(
            model,
            model,
            optimizer,
            x,
            torch.zeros(4, 3),
            objective=ObjectiveConfig(),
            step=7,
            global_count=4,
        )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_beta_weighs_the_kl_term_and_nothing_else() -> None:
    model, x = model_of("mlp", "bernoulli"), images(4)
    output = model(x, torch.zeros(4, 3))
    total, recon, kl = loss_sum(model, output, x, 4.0)
    torch.testing.assert_close(total, recon + 4.0 * kl)
    torch.testing.assert_close(loss_sum(model, output, x, 0.0)[0], recon)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, total_steps=100, base=1.0, warmup_steps=10) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.0)

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from vae_core.config import LikelihoodConfig
from vae_core.likelihoods import LIKELIHOODS, Bernoulli, Gaussian


def test_bernoulli_agrees_with_torch_distributions_pixel_by_pixel() -> None:
    likelihood = Bernoulli(LikelihoodConfig(kind="bernoulli"))
    logits = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    target = likelihood.target(torch.rand(4, 3, 5, 6, dtype=torch.float64))
    expected = TorchBernoulli(logits=logits).log_prob(target).flatten(1).sum(1)
    found = likelihood.log_prob(logits, likelihood.scale(), target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(likelihood.mean(logits), torch.sigmoid(logits))


def test_bernoulli_sees_binary_pixels_never_grey_ones() -> None:
    likelihood = Bernoulli(LikelihoodConfig(kind="bernoulli", threshold=0.3))
    target = likelihood.target(torch.tensor([[[[0.0, 0.29, 0.31, 1.0]]]]))
    assert target.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def test_bernoulli_is_a_probability_mass_that_sums_to_one() -> None:
    likelihood = Bernoulli(LikelihoodConfig(kind="bernoulli"))
    logits = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    images = torch.tensor([[(i >> b) & 1 for b in range(4)] for i in range(16)])
    images = images.double().reshape(16, 1, 2, 2)
    log_prob = likelihood.log_prob(logits.expand(16, 1, 2, 2), likelihood.scale(), images)
    torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("sigma", [1.0, 0.1])
def test_gaussian_carries_every_constant(sigma: float) -> None:
    likelihood = Gaussian(LikelihoodConfig(kind="gaussian", sigma=sigma))
    params = torch.randn(4, 2, 3, 5, dtype=torch.float64)
    x = torch.rand(4, 2, 3, 5, dtype=torch.float64)
    expected = Normal(params, sigma).log_prob(x).flatten(1).sum(1)
    log_sigma = torch.tensor(math.log(sigma), dtype=torch.float64)
    torch.testing.assert_close(likelihood.log_prob(params, log_sigma, x), expected)
    assert next(iter(likelihood.parameters())).requires_grad is False
    torch.testing.assert_close(likelihood.scale().exp().item(), sigma)


def test_the_learned_sigma_finds_the_root_mean_squared_error() -> None:
    likelihood = Gaussian(LikelihoodConfig(kind="gaussian"))
    x, params = torch.rand(64, 1, 4, 4), torch.full((64, 1, 4, 4), 0.5)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-likelihood.log_prob(params, likelihood.scale(), x).mean()).backward()
        optimizer.step()
    optimum = (x - params).square().mean().sqrt()
    torch.testing.assert_close(likelihood.scale().exp(), optimum, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("kind", list(LIKELIHOODS))
def test_gradients_and_the_sum_over_pixels(kind: str) -> None:
    likelihood = LIKELIHOODS[kind](LikelihoodConfig(kind=kind))
    params = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    log_sigma = torch.tensor(-1.0, dtype=torch.float64)
    target = likelihood.target(torch.rand(2, 1, 3, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, log_sigma, target), (params,))
    # Repeating every pixel four times makes the log-probability four times as large.
    twice = params.detach().repeat_interleave(2, 2).repeat_interleave(2, 3)
    target_twice = target.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(
        likelihood.log_prob(twice, log_sigma, target_twice),
        4.0 * likelihood.log_prob(params.detach(), log_sigma, target),
    )


@pytest.mark.parametrize("kind", list(LIKELIHOODS))
def test_an_empty_share_of_a_batch_has_an_empty_log_prob(kind: str) -> None:
    likelihood = LIKELIHOODS[kind](LikelihoodConfig(kind=kind))
    empty = torch.zeros(0, 1, 4, 4)
    assert likelihood.log_prob(empty, likelihood.scale(), empty).shape == (0,)

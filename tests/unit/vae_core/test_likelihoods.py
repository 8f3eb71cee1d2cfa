from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Normal

from vae_core import likelihoods
from vae_core.config import LikelihoodConfig
from vae_core.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Gaussian,
    PixelGaussian,
    log_normaliser,
    pixel_values,
)


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
    channels = likelihood.params_per_value
    params = torch.randn(2, channels, 3, 2, dtype=torch.float64, requires_grad=True)
    log_sigma = torch.tensor(-1.0, dtype=torch.float64)
    target = likelihood.target(torch.rand(2, 1, 3, 2, dtype=torch.float64))
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
    params = torch.zeros(0, likelihood.params_per_value, 4, 4)
    found = likelihood.log_prob(params, likelihood.scale(), torch.zeros(0, 1, 4, 4))
    assert found.shape == (0,)


def of(kind: str) -> likelihoods.Likelihood:
    return LIKELIHOODS[kind](LikelihoodConfig(kind=kind))


def test_pixel_gaussian_agrees_with_torch_distributions() -> None:
    likelihood = of("pixel_gaussian")
    assert isinstance(likelihood, PixelGaussian)
    mean, raw = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    params = torch.stack([mean, raw], dim=2).flatten(1, 2)
    x = torch.rand(4, 3, 5, 6, dtype=torch.float64)
    sigma = torch.exp(0.5 * likelihoods.soft_bound(raw))
    expected = Normal(mean, sigma).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(params, likelihood.scale(), x), expected)
    torch.testing.assert_close(likelihood.mean(params), mean)


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0, 40.0])
def test_continuous_bernoulli_agrees_with_torch_distributions(spread: float) -> None:
    likelihood = of("continuous_bernoulli")
    assert isinstance(likelihood, ContinuousBernoulli)
    torch.manual_seed(0)
    logits = spread * torch.randn(4, 3, 5, 6, dtype=torch.float64)
    x = torch.rand(4, 3, 5, 6, dtype=torch.float64)
    theirs = TorchContinuousBernoulli(logits=logits.clamp(-14, 14))
    ours = likelihood.log_prob(logits.clamp(-14, 14), likelihood.scale(), x)
    torch.testing.assert_close(ours, theirs.log_prob(x).flatten(1).sum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        likelihood.mean(logits.clamp(-14, 14)), theirs.mean, rtol=1e-6, atol=1e-6
    )
    assert torch.isfinite(likelihood.log_prob(logits, likelihood.scale(), x)).all()


@pytest.mark.parametrize("logit", [-30.0, -2.0, -0.051, -0.049, 0.0, 1e-4, 0.049, 0.051, 3.0, 30.0])
def test_continuous_bernoulli_integrates_to_one_with_its_mean(logit: float) -> None:
    """By Gauss–Legendre quadrature, on both sides of where the series takes over."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = torch.from_numpy((nodes + 1) / 2).reshape(-1, 1, 1, 1)
    w = torch.from_numpy(weights / 2)
    logits = torch.full_like(x, logit)
    likelihood = of("continuous_bernoulli")
    density = likelihood.log_prob(logits, likelihood.scale(), x).exp()
    assert (w * density).sum().item() == pytest.approx(1.0, abs=1e-9)
    mean = (w * density * x.flatten()).sum().item()
    assert likelihood.mean(logits[:1]).item() == pytest.approx(mean, abs=1e-8)


def test_the_normaliser_has_its_gradient_at_one_half() -> None:
    logits = torch.tensor([-0.2, -0.05, 0.0, 1e-6, 0.05, 0.2], dtype=torch.float64)
    assert torch.autograd.gradcheck(log_normaliser, (logits.requires_grad_(),))


def test_categorical_agrees_with_torch_distributions_and_in_chunks(monkeypatch) -> None:
    likelihood = of("categorical")
    assert isinstance(likelihood, Categorical)
    torch.manual_seed(0)
    logits = torch.randn(5, 2, 256, 3, 4, dtype=torch.float64)
    values = torch.randint(0, 256, (5, 2, 3, 4))
    params, x = logits.flatten(1, 2), values.double() / 255.0
    theirs = TorchCategorical(logits=logits.permute(0, 1, 3, 4, 2))
    expected = theirs.log_prob(values).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(params, likelihood.scale(), x), expected)
    levels = torch.arange(256, dtype=torch.float64) / 255.0
    torch.testing.assert_close(likelihood.mean(params), (theirs.probs * levels).sum(-1))
    assert torch.equal(pixel_values(likelihood.mode(params)), logits.argmax(2))
    monkeypatch.setattr(likelihoods, "_CHUNK_VALUES", 1)
    torch.testing.assert_close(likelihood.log_prob(params, likelihood.scale(), x), expected)


def test_every_byte_survives_the_way_to_unit_range_and_back() -> None:
    values = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(pixel_values(values.float() / 255.0), values)


@pytest.mark.parametrize("kind", list(LIKELIHOODS))
def test_samples_have_the_stated_mean_and_mode_is_most_probable(kind: str) -> None:
    likelihood = of(kind)
    torch.manual_seed(0)
    one = torch.randn(1, likelihood.params_per_value, 2, 2) * 2.0
    if kind == "pixel_gaussian":
        one[:, 1] -= 2.0
    draws = 40_000
    params = one.expand(draws, -1, -1, -1)
    generator = torch.Generator().manual_seed(1)
    if kind == "categorical":
        drawn = torch.cat(
            [likelihood.sample(p, likelihood.scale(), generator) for p in params.split(2000)]
        )
    else:
        drawn = likelihood.sample(params, likelihood.scale(), generator)
    error = (drawn.mean(0) - likelihood.mean(one)[0]).abs()
    assert (error <= 5 * drawn.std(0) / draws**0.5 + 1e-6).all()
    again = likelihood.sample(one, likelihood.scale(), torch.Generator().manual_seed(7))
    assert torch.equal(
        again, likelihood.sample(one, likelihood.scale(), torch.Generator().manual_seed(7))
    )
    # No drawn value is more probable than the mode.
    scale = likelihood.scale()
    best = likelihood.log_prob(one, scale, likelihood.mode(one))
    some = drawn[:200]
    assert (likelihood.log_prob(one.expand(200, -1, -1, -1), scale, some) <= best + 1e-4).all()

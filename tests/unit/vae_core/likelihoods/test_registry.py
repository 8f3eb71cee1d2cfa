from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Normal

from tests.unit.vae_core.models import image_noise_of
from vae_core.all_reduce import ALONE
from vae_core.config import LikelihoodConfig
from vae_core.likelihoods import base as likelihood_module
from vae_core.likelihoods.base import Likelihood
from vae_core.likelihoods.bernoulli import Bernoulli, ContinuousBernoulli, log_normaliser
from vae_core.likelihoods.discrete import Categorical, LogisticMixture, pixel_values
from vae_core.likelihoods.gaussian import SIGMA_FLOOR, Gaussian, OptimalGaussian, PixelGaussian
from vae_core.likelihoods.registry import LIKELIHOODS
from vae_core.noise import StepNoise
from vae_core.normal import soft_bound


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


def test_freezing_the_weights_leaves_sigma_what_it_was() -> None:
    likelihood = Gaussian(LikelihoodConfig(kind="gaussian"))
    before = likelihood.scale().item()
    likelihood.requires_grad_(False)
    assert likelihood.scale().item() == before


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
    channels = likelihood.outputs(1)
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
    params = torch.zeros(0, likelihood.outputs(1), 4, 4)
    found = likelihood.log_prob(params, likelihood.scale(), torch.zeros(0, 1, 4, 4))
    assert found.shape == (0,)


def of(kind: str) -> Likelihood:
    return LIKELIHOODS[kind](LikelihoodConfig(kind=kind))


def test_pixel_gaussian_agrees_with_torch_distributions() -> None:
    likelihood = of("pixel_gaussian")
    assert isinstance(likelihood, PixelGaussian)
    mean, raw = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    params = torch.stack([mean, raw], dim=2).flatten(1, 2)
    x = torch.rand(4, 3, 5, 6, dtype=torch.float64)
    sigma = torch.exp(0.5 * soft_bound(raw))
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
    monkeypatch.setattr(likelihood_module, "CHUNK_VALUES", 1)
    torch.testing.assert_close(likelihood.log_prob(params, likelihood.scale(), x), expected)


def test_every_byte_survives_the_way_to_unit_range_and_back() -> None:
    values = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(pixel_values(values.float() / 255.0), values)


@pytest.mark.parametrize("kind", list(LIKELIHOODS))
def test_samples_have_the_stated_mean_and_mode_is_most_probable(kind: str) -> None:
    likelihood = of(kind)
    torch.manual_seed(0)
    one = torch.randn(1, likelihood.outputs(1), 2, 2) * 2.0
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
    # The mixture's mean is that before rounding: at most half a value off.
    rounding = 0.5 / 255 if kind == "logistic_mixture" else 1e-6
    assert (error <= 5 * drawn.std(0) / draws**0.5 + rounding).all()
    again = likelihood.sample(one, likelihood.scale(), torch.Generator().manual_seed(7))
    assert torch.equal(
        again, likelihood.sample(one, likelihood.scale(), torch.Generator().manual_seed(7))
    )
    # No drawn value is more probable than the mode.
    scale = likelihood.scale()
    best = likelihood.log_prob(one, scale, likelihood.mode(one))
    some = drawn[:200]
    assert (likelihood.log_prob(one.expand(200, -1, -1, -1), scale, some) <= best + 1e-4).all()


def test_stochastic_binarisation_draws_each_pixel_with_the_probability_of_its_value() -> None:
    config = LikelihoodConfig(kind="bernoulli", binarisation="stochastic")
    likelihood = Bernoulli(config)
    grey = torch.tensor([0.0, 0.2, 0.7, 1.0]).reshape(1, 1, 2, 2)
    x = grey.expand(20_000, 1, 2, 2)
    drawn = likelihood.target(x, image_noise_of(20_000))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (0.25 / 20_000) ** 0.5
    assert ((drawn.mean(0) - grey[0]).abs() <= 4 * error).all()
    # Black stays black and white stays white, always.
    assert drawn[:, 0, 0, 0].max() == 0.0
    assert drawn[:, 0, 1, 1].min() == 1.0
    with pytest.raises(ValueError, match="needs noise"):
        likelihood.target(x)


def test_a_binarisation_belongs_to_the_image_or_to_the_step() -> None:
    likelihood = Bernoulli(LikelihoodConfig(kind="bernoulli", binarisation="stochastic"))
    x = torch.full((6, 1, 4, 4), 0.5)
    whole = likelihood.target(x, image_noise_of(6))
    assert torch.equal(likelihood.target(x[:2], image_noise_of(2)), whole[:2])
    assert not torch.equal(whole, likelihood.target(x, image_noise_of(6, seed=1)))
    steps = [likelihood.target(x, StepNoise(seed=0, step=s, batch=6)) for s in (0, 0, 1)]
    assert torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0], steps[2])
    share = likelihood.target(x[2:5], StepNoise(seed=0, step=0, batch=6, positions=slice(2, 5)))
    assert torch.equal(share, steps[0][2:5])


def test_the_optimal_sigma_is_the_root_mean_squared_error_of_the_batch() -> None:
    likelihood = of("optimal_gaussian")
    assert isinstance(likelihood, OptimalGaussian)
    params = torch.rand(8, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    x = torch.rand(8, 1, 4, 4, dtype=torch.float64)
    log_sigma = likelihood.batch_scale(params, x, ALONE)
    assert not log_sigma.requires_grad
    torch.testing.assert_close(log_sigma.exp(), (x - params).square().mean().sqrt().detach())

    def nll(at: torch.Tensor) -> torch.Tensor:
        return -likelihood.log_prob(params, at, x).mean()

    # No other σ explains the batch better, and the gradient is that of (P/2)·log MSE
    # (Rybkin et al. 2021, eq. 8).
    for shift in (-0.1, 0.1):
        assert nll(log_sigma) < nll(log_sigma + shift)
    (ours,) = torch.autograd.grad(nll(log_sigma), params)
    (theirs,) = torch.autograd.grad(8.0 * torch.log((x - params).square().mean()), params)
    torch.testing.assert_close(ours, theirs)


def test_the_optimal_sigma_is_floored_and_frozen() -> None:
    likelihood = of("optimal_gaussian")
    x = torch.rand(4, 1, 4, 4)
    floor = likelihood.batch_scale(x.clone(), x, ALONE).exp().item()
    assert floor == pytest.approx(SIGMA_FLOOR)
    likelihood.freeze(0.09)
    assert likelihood.scale().exp().item() == pytest.approx(0.3)
    held = of("optimal_gaussian")
    held.load_state_dict(likelihood.state_dict())
    assert torch.equal(held.scale(), likelihood.scale())


def naive_mixture(params: torch.Tensor, values: torch.Tensor, components: int) -> torch.Tensor:
    """log p of one pixel of C channels, from distribution functions, a loop at a time (float64)."""
    channels = len(values)
    weights = torch.softmax(params[:components], 0)
    rest = params[components:].reshape(-1, components)
    means, raw, coefficients = rest[:channels], rest[channels : 2 * channels], rest[2 * channels :]
    scales = torch.exp(7.0 * torch.tanh(raw / 7.0))
    x = values.double() / 127.5 - 1.0
    total = torch.zeros((), dtype=torch.float64)
    for m in range(components):
        mass, row = weights[m], 0
        for c in range(channels):
            mean = means[c, m]
            for j in range(c):
                mean = mean + torch.tanh(coefficients[row, m]) * x[j]
                row += 1
            edges = (x[c] + torch.tensor([-1.0, 1.0], dtype=torch.float64) / 255.0 - mean) / scales[
                c, m
            ]
            low, high = torch.sigmoid(edges)
            low = torch.zeros_like(low) if values[c] == 0 else low
            high = torch.ones_like(high) if values[c] == 255 else high
            mass = mass * (high - low)
        total = total + mass
    return total.log()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_logistic_mixture_agrees_with_a_naive_one(channels: int) -> None:
    likelihood = LogisticMixture(LikelihoodConfig(kind="logistic_mixture", components=3))
    torch.manual_seed(0)
    params = torch.randn(2, likelihood.outputs(channels), 2, 3, dtype=torch.float64)
    values = torch.randint(0, 256, (2, channels, 2, 3))
    values[0, :, 0, 0], values[0, :, 0, 1] = 0, 255
    found = likelihood.log_prob(params, likelihood.scale(), values.double() / 255.0)
    for n in range(2):
        expected = sum(
            naive_mixture(params[n, :, i, j], values[n, :, i, j], 3)
            for i in range(2)
            for j in range(3)
        )
        torch.testing.assert_close(found[n], expected)


def test_the_logistic_mixture_sums_to_one_over_both_channels() -> None:
    likelihood = LogisticMixture(LikelihoodConfig(kind="logistic_mixture", components=4))
    torch.manual_seed(1)
    params = 2.0 * torch.randn(1, likelihood.outputs(2), 1, 1, dtype=torch.float64)
    levels = torch.arange(256, dtype=torch.float64) / 255.0
    images = torch.cartesian_prod(levels, levels).reshape(-1, 2, 1, 1)
    log_prob = likelihood.log_prob(
        params.expand(len(images), -1, -1, -1), likelihood.scale(), images
    )
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("log_scale", [-6.9, -3.0, 1.0])
def test_the_logistic_mass_keeps_its_digits_in_the_tails(log_scale: float) -> None:
    """In float32 as in float64, where the difference of two sigmoids would be exactly zero."""
    from vae_core.likelihoods.discrete import log_mass

    values = torch.arange(256)
    for mean in (-1.5, 0.0, 0.9):
        double, single = (
            log_mass(values, torch.tensor(mean, dtype=t), torch.tensor(log_scale, dtype=t))
            for t in (torch.float64, torch.float32)
        )
        assert torch.isfinite(single).all()
        torch.testing.assert_close(single.double(), double, rtol=2e-4, atol=2e-4)


def test_colours_are_coupled_in_mean_and_samples() -> None:
    """The red value moves the green mean by its coefficient."""
    likelihood = LogisticMixture(LikelihoodConfig(kind="logistic_mixture", components=1))
    raw = 7.0 * math.atanh(-4.0 / 7.0)
    params = torch.tensor([0.0, 0.4, 0.1, raw, raw, 0.5]).reshape(1, -1, 1, 1)
    drawn = likelihood.sample(params.expand(20_000, -1, -1, -1), likelihood.scale()).flatten(1)
    expected = 0.5 + 0.5 * torch.tensor([0.4, 0.1 + math.tanh(0.5) * 0.4])
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0.0, atol=2e-3)
    torch.testing.assert_close(likelihood.mean(params).flatten(), expected, rtol=0.0, atol=1e-4)
    slope = torch.cov(drawn.T)[0, 1] / drawn[:, 0].var()
    assert slope.item() == pytest.approx(math.tanh(0.5), abs=0.03)


def test_the_mean_of_coupled_colours_is_that_of_their_samples() -> None:
    """Where clipping bites, too: a wide red channel that pushes green against its end."""
    likelihood = LogisticMixture(LikelihoodConfig(kind="logistic_mixture", components=1))
    wide, narrow = 7.0 * math.atanh(1.0 / 7.0), 7.0 * math.atanh(-4.0 / 7.0)
    hard = torch.tensor([0.0, 0.0, 1.0, -0.5, wide, narrow, narrow, 2.0, 1.0, -1.0])
    torch.manual_seed(0)
    for params in (hard, *torch.randn(4, likelihood.outputs(3))):
        one = params.reshape(1, -1, 1, 1)
        drawn = likelihood.sample(one.expand(100_000, -1, -1, -1), likelihood.scale())
        error = (drawn.mean(0) - likelihood.mean(one)[0]).abs().max()
        assert error * 255 < 2.0


def test_a_batch_that_is_not_finite_and_evaluation_leave_the_optimal_sigma_alone() -> None:
    likelihood = of("optimal_gaussian")
    assert isinstance(likelihood, OptimalGaussian)
    x = torch.rand(4, 1, 4, 4)
    likelihood.batch_scale(x + 0.1, x, ALONE)
    before = likelihood.scale().item()
    likelihood.batch_scale(x * math.nan, x, ALONE)
    assert likelihood.scale().item() == before
    likelihood.eval()
    assert likelihood.batch_scale(x + 0.7, x, ALONE).item() == before
    assert likelihood.scale().item() == before

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LogisticRegression
from torch.distributions import Bernoulli, Categorical, MultivariateNormal, Normal

from tests.unit.vae_core.models import image_noise_of, images, model_of
from tests.unit.vae_core.test_bounds import images as small_images
from tests.unit.vae_core.test_bounds import linear_model
from vae_core.families.baselines import (
    FullGaussian,
    IndependentPixels,
    IndependentValues,
    ValueCounts,
)
from vae_core.families.linear import PixelSums
from vae_core.scores.evaluation import Evaluation, EvaluationSums, inference_gap
from vae_core.scores.names import SCORES
from vae_core.scores.per_image import Scorer
from vae_core.stats.disentanglement import lasso
from vae_core.stats.memorisation import memorisation, nearest_distance
from vae_core.stats.probe import LinearProbe


def correlated(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    mixing = torch.randn(5, 5, dtype=torch.float64)
    return torch.randn(count, 5, dtype=torch.float64) @ mixing + 3.0


def sums_of(x: torch.Tensor) -> PixelSums:
    sums = PixelSums.zeros(x[0])
    for part in x.split(70):
        sums.add(part)
    return sums


def test_the_full_gaussian_is_torch_s_own_at_the_moments_of_the_data() -> None:
    x = correlated(300)
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)
    full = FullGaussian.fit(sums_of(x), ridge=0.0).log_prob(x)
    torch.testing.assert_close(full, MultivariateNormal(mean, cov).log_prob(x))
    # What pixels say about each other is worth nats.
    assert full.mean() > Normal(mean, cov.diagonal().sqrt()).log_prob(x).sum(1).mean() + 1.0


def counted(pixels: torch.Tensor, parts: int = 3) -> ValueCounts:
    """As workers would: each counts a share, and the counts add up."""
    total = ValueCounts.zeros(pixels.shape[1])
    for part in pixels.chunk(parts):
        own = ValueCounts.zeros(pixels.shape[1])
        own.add(part)
        for held, found in zip(total.tensors(), own.tensors(), strict=True):
            held += found
    return total


def test_independent_pixels_are_gaussians_values_and_bits_in_nats() -> None:
    torch.manual_seed(0)
    pixels = (torch.rand(400, 6) * torch.tensor([256, 128, 64, 32, 8, 1])).to(torch.uint8)
    counts = counted(pixels)
    assert counts.counts_PV.sum().item() == pixels.numel()
    x = pixels.double() / 255.0
    gaussian = IndependentPixels.fit(counts)
    spread = x.var(0, correction=0).clamp_min(1e-6).sqrt()
    torch.testing.assert_close(gaussian.log_prob(x), Normal(x.mean(0), spread).log_prob(x).sum(1))
    values = IndependentValues.fit(counts)
    expected = torch.stack(
        [
            Categorical(probs=(torch.bincount(column.long(), minlength=256) + 0.5)).log_prob(column)
            for column in pixels.T
        ]
    ).sum(0)
    torch.testing.assert_close(values.log_prob(pixels), expected.double(), rtol=1e-5, atol=1e-5)
    on = values.probability_PV[:, 128:].sum(1)
    bits = (x > 0.5).double()
    torch.testing.assert_close(values.log_prob_bits(pixels), Bernoulli(on).log_prob(bits).sum(1))
    # Nothing that can be is impossible.
    assert torch.isfinite(values.log_prob(255 - pixels)).all()


def test_evaluation_says_what_the_scores_say_and_adds_up_over_workers() -> None:
    model, x = model_of("conv", "bernoulli").eval(), images(20)
    parts = [EvaluationSums.zeros(3) for _ in range(2)]
    noise = image_noise_of(20)
    for sums, rows in zip(parts, (slice(0, 13), slice(13, 20)), strict=True):
        own = type(noise)(seed=0, keys_N2=noise.keys_N2[rows])
        sums.add(model, x[rows], own, samples=2)
    for total, other in zip(parts[0].tensors(), parts[1].tensors(), strict=True):
        total += other
    found = Evaluation.of(model, parts[0])
    scorer = Scorer(model=model, batch_size=20, samples=2, seed=0)
    pixels = (x.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    rounded = Evaluation.of(model, _whole(model, pixels.permute(0, 3, 1, 2).float() / 255.0))
    scores = scorer.score(pixels.numpy(), [f"{i:016x}" for i in range(20)]).scores
    assert found.images == 20
    assert found.rate == pytest.approx(math.fsum(found.kl_D or ()))
    assert found.neg_elbo == pytest.approx(found.distortion + (found.rate or 0.0))
    assert found.bits_per_dim == pytest.approx((found.neg_elbo or 0) / (72 * math.log(2)))
    for name, value in (
        ("neg_elbo", rounded.neg_elbo),
        ("recon_nll", rounded.distortion),
        ("kl", rounded.rate),
        ("recon_mse", rounded.recon_mse),
        ("bits_per_dim", rounded.bits_per_dim),
    ):
        held = scores[name]
        assert held is not None
        assert name in SCORES
        assert value == pytest.approx(held.mean(), rel=1e-6)


def _whole(model, x: torch.Tensor) -> EvaluationSums:
    sums = EvaluationSums.zeros(3)
    sums.add(model, x, image_noise_of(len(x)), samples=2)
    return sums


def test_active_units_are_those_whose_mean_moves() -> None:
    model, x = model_of("linear"), images(40)
    with torch.no_grad():
        model.encoder.get_parameter("mean.weight")[1] = 0.0
        model.encoder.get_parameter("mean.weight")[2] *= 1e-3
    assert Evaluation.of(model, _whole(model, x)).active_units == 1


def test_an_autoencoder_has_no_rate_and_says_so() -> None:
    model, x = model_of(posterior="deterministic"), images(10)
    found = Evaluation.of(model, _whole(model, x))
    model.requires_grad_(False)
    assert (found.rate, found.neg_elbo, found.kl_D, found.bits_per_dim) == (None,) * 4
    assert found.distortion == pytest.approx(
        -float(
            model.likelihood.log_prob(
                model.decode(model.encode(x).mean_ND), model.likelihood.scale(), x
            ).mean()
        ),
        rel=1e-6,
    )


@pytest.mark.slow
def test_beta_trades_distortion_for_rate() -> None:
    """A rate–distortion curve: with rising β the rate falls and the distortion rises."""
    from vae_core.config import ObjectiveConfig
    from vae_core.noise import StepNoise
    from vae_core.objectives.objectives import Objective
    from vae_core.training.step import train_step

    points = []
    for beta in (0.05, 1.0, 20.0):
        model, x = model_of("mlp", "bernoulli"), images(64)
        objective = Objective(model, ObjectiveConfig(beta=beta))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(250):
            train_step(objective, optimizer, x, StepNoise(seed=0, step=step, batch=64), step=step)
        found = Evaluation.of(model, _whole(model, x))
        points.append((found.rate or 0.0, found.distortion))
    rates, distortions = zip(*points, strict=True)
    assert rates[0] > rates[1] > rates[2]
    assert distortions[0] < distortions[1] < distortions[2]


def test_the_inference_gap_is_zero_at_the_exact_posterior_and_grows_off_it() -> None:
    x = small_images(5)
    noise = image_noise_of(5)
    gaps = []
    for shift in (0.0, 0.3, 0.9):
        model, _ = linear_model(shift)
        gap = inference_gap(model, x, noise, samples=300, chunk=7)
        assert (gap > -1e-9).all()
        gaps.append(gap.mean().item())
    assert gaps[0] < 1e-6
    assert gaps[0] < gaps[1] < gaps[2]


def test_the_linear_probe_is_scikit_learn_s_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    x = rng.normal(size=(400, 6)) + np.eye(4, 6)[labels] * 1.5
    probe = LinearProbe.fit(torch.from_numpy(x), torch.from_numpy(labels), l2=1e-2)
    standard = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1.0 / (1e-2 * 400), max_iter=2000, tol=1e-10)
    theirs.fit(standard, labels)
    np.testing.assert_allclose(probe.weight_KD.numpy(), theirs.coef_, atol=2e-4)
    assert probe.accuracy(torch.from_numpy(x), torch.from_numpy(labels)) == pytest.approx(
        theirs.score(standard, labels), abs=0.005
    )


def test_lasso_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 7))
    y = x @ np.array([1.0, 0, 0, -2.0, 0, 0.1, 0]) + 0.3 * rng.normal(size=200)
    for l1 in (0.01, 0.2):
        theirs = Lasso(alpha=l1, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x, y)
        np.testing.assert_allclose(lasso(x, y, l1), theirs.coef_, atol=1e-6)


def test_a_copier_is_found_out_and_an_honest_model_is_not() -> None:
    torch.manual_seed(0)
    train, heldout, honest = torch.randn(3, 300, 4)
    copier = train[:200] + 0.01 * torch.randn(200, 4)
    far = 20.0 + torch.randn(200, 4)
    same = torch.randn(300)
    found = memorisation(copier, train, heldout, same, same + 3.0)
    assert found.copying > 0.95
    assert found.membership > 0.95
    fair = memorisation(honest, train, heldout, same, torch.randn(300))
    assert fair.copying == pytest.approx(0.5, abs=0.08)
    assert fair.membership == pytest.approx(0.5, abs=0.08)
    assert memorisation(far, train, heldout, same, same).copying == 0.0
    expected = torch.cdist(honest, train).min(1).values
    torch.testing.assert_close(nearest_distance(honest, train, chunk=7), expected)

"""The aggregate posterior: closed forms, torch's own, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vae_core.stats.aggregate_posterior import active_units, aggregate_kl, kl_dimensions
from vae_core.stats.bootstrap import intervals, mean


def codes(count: int, seed: int, dim: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors whose aggregate is not quite the prior."""
    generator = np.random.default_rng(seed)
    mix = np.linspace(0.3, 1.1, dim) + 0.1 * np.eye(dim)[::-1]
    mean_ND = generator.normal(size=(count, dim)) * mix.diagonal() + 0.2
    return mean_ND, np.log(np.full((count, dim), 0.3) + 0.1 * generator.random((count, dim)))


def test_kl_is_that_of_torch() -> None:
    mean_ND, log_var_ND = codes(20, 0)
    scale = torch.from_numpy(np.exp(log_var_ND / 2))
    known = kl_divergence(
        Normal(torch.from_numpy(mean_ND), scale), Normal(torch.zeros(20, 3), torch.ones(20, 3))
    )
    np.testing.assert_allclose(kl_dimensions(mean_ND, log_var_ND), known.numpy())


def test_the_fit_is_the_gaussian_of_the_same_moments() -> None:
    mean_ND, log_var_ND = codes(500, 1)
    covariance = np.cov(mean_ND.T, bias=True) + np.diag(np.exp(log_var_ND).mean(0))
    fitted = MultivariateNormal(
        torch.from_numpy(mean_ND.mean(0)), covariance_matrix=torch.from_numpy(covariance)
    )
    prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    found = aggregate_kl(mean_ND, log_var_ND)
    assert found.kl == pytest.approx(float(kl_divergence(fitted, prior)))
    assert found.terms_N.mean() == pytest.approx(found.kl)


def test_its_intervals_cover_and_its_bias_is_the_one_told() -> None:
    truth = aggregate_kl(*codes(400_000, 2, dim=8)).kl
    covered, values, told = 0, [], []
    for seed in range(300):
        found = aggregate_kl(*codes(400, 10 + seed, dim=8))
        values.append(found.kl)
        told.append(found.bias)
        # Of the terms, less the bias: the bootstrap is of the spread alone.
        spread = intervals(
            {"kl": mean(found.terms_N - found.bias)}, 400, resamples=200, confidence=0.9, seed=seed
        )["kl"]
        covered += bool(spread.low <= truth <= spread.high)
    assert np.mean(values) - truth == pytest.approx(np.mean(told), rel=0.25)
    assert 0.84 <= covered / 300 <= 0.95


def test_a_bootstrap_of_the_fit_itself_has_the_same_spread() -> None:
    mean_ND, log_var_ND = codes(1000, 3)
    fit = aggregate_kl(mean_ND, log_var_ND)
    drawn = np.random.default_rng(0).integers(0, 1000, (400, 1000))
    by_hand = np.std([aggregate_kl(mean_ND[rows], log_var_ND[rows]).kl for rows in drawn])
    ours = np.std(fit.terms_N[drawn].mean(axis=1))
    assert ours == pytest.approx(by_hand, rel=0.15)


def test_active_units_are_counted_by_their_variance() -> None:
    generator = np.random.default_rng(0)
    mean_ND = 1e4 + generator.normal(size=(300, 4)) * [1.0, 0.2, 0.05, 0.0]
    statistic = active_units(mean_ND)
    assert statistic(np.ones((1, 300))).tolist() == [2.0]
    counts = generator.multinomial(300, np.full(300, 1 / 300), size=50).astype(float)
    by_hand = [
        (np.repeat(mean_ND, row.astype(int), axis=0).var(axis=0) > 0.01).sum() for row in counts
    ]
    assert statistic(counts).tolist() == by_hand

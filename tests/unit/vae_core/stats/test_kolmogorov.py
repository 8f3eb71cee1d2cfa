"""The two-sample Kolmogorov-Smirnov test against scipy, and its level by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstwobign

from vae_core.stats import kolmogorov
from vae_core.stats.conformal import p_values
from vae_core.stats.kolmogorov import kolmogorov_tail, ks_two_sample


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (5, 7), (30, 30), (57, 200), (300, 181)])
def test_it_is_scipys_exact_one(n: int, m: int) -> None:
    generator = np.random.default_rng(n * 1000 + m)
    for shift in (0.0, 0.1, 0.4):
        first, second = generator.normal(size=n), generator.normal(shift, size=m)
        known = ks_2samp(first, second, method="exact")
        statistic, p_value = ks_two_sample(first, second)
        assert statistic == pytest.approx(known.statistic)
        assert p_value == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)


def test_ties_are_counted_as_scipy_counts_them() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, 40), generator.integers(0, 5, 60)
    known = ks_2samp(first, second, method="exact")
    assert ks_two_sample(first, second) == pytest.approx((known.statistic, known.pvalue))
    assert ks_two_sample(np.ones(5), np.ones(4)) == (0.0, 1.0)


def test_the_limit_is_kolmogorovs_distribution(monkeypatch) -> None:
    for x in (0.05, 0.3, 0.499, 0.5, 0.8, 1.36, 2.5, 5.0):
        assert kolmogorov_tail(x) == pytest.approx(kstwobign.sf(x), rel=1e-9, abs=1e-15), x
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=2000), generator.normal(0.05, size=1500)
    exact = ks_two_sample(first, second)[1]
    monkeypatch.setattr(kolmogorov, "EXACT_STEPS", 0)
    assert ks_two_sample(first, second)[1] == pytest.approx(exact, abs=0.01)
    # Where the exact one would drown in rounding.
    assert 0 < ks_two_sample(first, second + 1)[1] < 1e-90


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="two samples"):
        ks_two_sample(np.zeros(0), np.ones(3))


def test_exchangeable_scores_are_rejected_as_often_as_they_should_be() -> None:
    """Calibration and test split drawn anew each time; conformal p-values against uniform would
    take those of one calibration split for independent ones, and reject far too often."""
    generator = np.random.default_rng(2)
    ours, naive = [], []
    for _ in range(500):
        calibration, scores = np.sort(generator.normal(size=100)), generator.normal(size=400)
        ours.append(ks_two_sample(scores, calibration)[1])
        against_uniform = np.sort(p_values(scores, calibration))
        gap = np.abs(against_uniform - np.arange(1, 401) / 400).max()
        naive.append(kolmogorov_tail(np.sqrt(400) * gap))
    assert np.mean(np.array(ours) <= 0.05) < 0.075
    assert np.mean(np.array(ours) <= 0.5) == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.array(naive) <= 0.05) > 0.15

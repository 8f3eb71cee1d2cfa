"""The test of data-copying: fair, a copier, and one that has learned nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from vae_core.memorisation import copying_z, nearest_distance


def test_z_is_that_of_scipy_ties_and_all() -> None:
    generator = np.random.default_rng(0)
    for decimals in (0, 9):
        drawn = np.round(generator.exponential(size=70), decimals)
        held = np.round(generator.exponential(size=90), decimals)
        known = mannwhitneyu(drawn, held, method="asymptotic", use_continuity=False)
        z = copying_z(drawn, held)
        assert 2 * norm.sf(abs(z)) == pytest.approx(known.pvalue)
        assert np.sign(z) == np.sign(known.statistic - 70 * 90 / 2)
    assert np.isnan(copying_z(np.zeros(5), np.zeros(7)))


def test_it_tells_a_copier_from_a_fair_model_and_from_a_poor_one() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(count, 6, generator=generator)

    train, held = drawn(500), drawn(300)
    far = nearest_distance(held, train).numpy()
    found = {
        "fair": drawn(300),
        "copier": train[:300] + 0.05 * drawn(300),
        "poor": 3.0 * drawn(300),
    }
    z = {name: copying_z(nearest_distance(x, train).numpy(), far) for name, x in found.items()}
    assert abs(z["fair"]) < 3
    assert z["copier"] < -3
    assert z["poor"] > 3


def test_a_fair_model_is_within_its_noise() -> None:
    """Both sides are drawn alike, and stand against the same training images."""
    generator = np.random.default_rng(1)
    z = [
        copying_z(generator.exponential(size=60), generator.exponential(size=80))
        for _ in range(400)
    ]
    assert np.std(z) == pytest.approx(1.0, abs=0.1)

"""Tails in closed form, against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from vae_core.stats.tails import chi_square_below, fisher_exact, labellings, smallest_shift


@pytest.mark.parametrize("degrees", [1, 4, 64, 300])
@pytest.mark.parametrize("shift", [0.0, 3.0, 60.0])
def test_chi_square(degrees: int, shift: float) -> None:
    for x in (0.5, degrees, degrees + shift, 2.0 * (degrees + shift)):
        known = stats.ncx2.cdf(x, degrees, shift) if shift else stats.chi2.cdf(x, degrees)
        assert chi_square_below(x, degrees, shift) == pytest.approx(known, abs=1e-9)
    assert chi_square_below(0.0, degrees, shift) == 0.0


@pytest.mark.parametrize(("degrees", "level"), [(1, 0.05), (64, 1e-4)])
def test_the_smallest_shift_has_the_power_that_was_asked_for(degrees: int, level: float) -> None:
    shift = smallest_shift(400, 1000, degrees, level)
    noncentral = 400 * 1000 / 1400 * shift**2
    threshold = stats.chi2.isf(level, degrees)
    assert stats.ncx2.sf(threshold, degrees, noncentral) == pytest.approx(0.8, abs=1e-6)


def test_fisher_exact() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        tries, other = generator.integers(1, 60, 2).tolist()
        hits, other_hits = (int(generator.integers(0, n + 1)) for n in (tries, other))
        table = [[hits, tries - hits], [other_hits, other - other_hits]]
        known = stats.fisher_exact(table)[1]
        assert fisher_exact(hits, tries, other_hits, other) == pytest.approx(known, rel=1e-6)
    assert fisher_exact(0, 10, 0, 10) == 1.0
    assert fisher_exact(60, 10_000, 50, 600_000) < 1e-50


def test_labellings() -> None:
    assert labellings(4, 4) == pytest.approx(2**4 / 2)
    assert labellings(3, 7) == labellings(7, 3) == pytest.approx(3 * 3 * 4)
    assert labellings(0, 5) == 1.0
    assert labellings(5000, 5000) == math.inf

"""The bootstrap: intervals that cover, pairs that stay pairs, gaps that stay out."""

from __future__ import annotations

import numpy as np
import pytest

from vae_core.stats import bootstrap
from vae_core.stats.bootstrap import difference, interval_of_two, intervals, mean, median


def of(statistic: bootstrap.Statistic, images: int, **settings) -> bootstrap.Interval:
    told = {"resamples": 400, "confidence": 0.95, "seed": 0} | settings
    return intervals({"it": statistic}, images, **told)["it"]


@pytest.mark.parametrize(("statistic", "truth"), [(mean, 1.0), (median, np.log(2.0))])
def test_intervals_cover_the_truth_as_often_as_they_say(statistic, truth: float) -> None:
    """Of 400 samples of 200 skewed values each."""
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(400):
        found = of(statistic(generator.exponential(size=200)), 200, confidence=0.9, seed=seed)
        covered += bool(found.low <= truth <= found.high)
    # Percentile intervals of skewed means are a little short.
    assert 0.86 <= covered / 400 <= 0.94


def test_the_value_is_that_of_the_images_themselves() -> None:
    values = np.random.default_rng(0).normal(size=(101, 3))
    values[7] = np.nan
    values[:4, 1] = np.nan
    found = of(mean(values), 101)
    np.testing.assert_allclose(found.value, np.nanmean(values, axis=0))
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()
    for count in (100, 101):
        one = values[:count, 0]
        assert of(median(one), count).value == np.nanmedian(one)


def test_a_resample_is_drawn_with_replacement(monkeypatch) -> None:
    values = np.random.default_rng(2).normal(size=500)
    found = of(mean(values), 500, resamples=2000)
    expected = 2 * 1.96 * values.std() / np.sqrt(500)
    assert float(found.high - found.low) == pytest.approx(expected, rel=0.1)
    medians = np.median(np.random.default_rng(3).choice(values, (2000, 500)), axis=1)
    by_hand = np.quantile(medians, [0.025, 0.975])
    drawn = of(median(values), 500, resamples=2000)
    np.testing.assert_allclose([drawn.low, drawn.high], by_hand, atol=0.03)


def test_however_many_are_drawn_at_once_they_are_the_same(monkeypatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = of(mean(values), 50)
    monkeypatch.setattr(bootstrap, "COUNTS_AT_ONCE", 120)
    assert of(mean(values), 50) == whole
    assert of(mean(values), 50, seed=1) != whole


def test_a_paired_difference_knows_what_both_have_in_common() -> None:
    generator = np.random.default_rng(4)
    hard = generator.normal(0, 100, 300)
    first, second = hard + generator.normal(0, 1, 300), hard + 0.5 + generator.normal(0, 1, 300)
    paired = of(difference(mean(first), mean(second)), 300)
    assert float(paired.value) == pytest.approx((second - first).mean())
    assert 0.0 < paired.low < paired.high < 1.0
    alone = of(mean(first), 300)
    assert alone.high - alone.low > 10 * (paired.high - paired.low)


def test_what_no_image_has_is_nan() -> None:
    nothing = np.full(9, np.nan)
    for found in (of(mean(nothing), 9), of(median(nothing), 9)):
        assert np.isnan([found.value, found.low, found.high]).all()
    some = np.full((9, 2), np.nan)
    some[:, 1] = 3.0
    found = of(mean(some), 9)
    np.testing.assert_array_equal([found.low, found.high], [[np.nan, 3.0], [np.nan, 3.0]])


def test_of_two_samples_each_is_drawn_by_itself(monkeypatch) -> None:
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=300), generator.normal(3.0, 2.0, 80)

    def gap(counts_RN: np.ndarray, counts_RM: np.ndarray) -> np.ndarray:
        return mean(second)(counts_RM) - mean(first)(counts_RN)

    told = {"resamples": 1000, "confidence": 0.95, "seed": 0}
    found = interval_of_two(gap, 300, 80, **told)
    assert float(found.value) == pytest.approx(second.mean() - first.mean())
    expected = 2 * 1.96 * np.sqrt(first.var() / 300 + second.var() / 80)
    assert float(found.high - found.low) == pytest.approx(expected, rel=0.1)
    same = interval_of_two(lambda a, b: mean(first)(a) - mean(first)(b), 300, 300, **told)
    assert same.high - same.low > 0.1  # the draws are not the same
    monkeypatch.setattr(bootstrap, "COUNTS_AT_ONCE", 700)
    few_at_once = interval_of_two(gap, 300, 80, **told)
    assert float(few_at_once.low) == pytest.approx(float(found.low))
    assert float(few_at_once.high) == pytest.approx(float(found.high))

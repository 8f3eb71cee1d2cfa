"""Two-sample tests: against other implementations; false alarms and power by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.rounds import sampled
from vae_core.stats.tails import smallest_shift
from vae_core.stats.two_sample import (
    TestsOfSamples,
    TwoSample,
    discrepancy,
    evidence,
    ks_statistics,
    mean_shift,
    normal_scores,
    strata,
    two_sample,
    weights,
)

NIGHTS = sampled(300)
ALPHA = 0.1


def drawn(generator: np.random.Generator, count: int, dimensions: int = 4) -> np.ndarray:
    return generator.standard_normal((count, dimensions))


def told(arrivals: np.ndarray, reference: np.ndarray, seed: int = 0, **more) -> TwoSample:
    return two_sample({"x": (arrivals, reference)}, seed=seed, relabellings=99, **more)


def labelled(
    arrivals: int, images: int, relabellings: int, generator: np.random.Generator
) -> np.ndarray:
    """Weights of independent images."""
    is_arrival, alone = np.arange(images) < arrivals, np.arange(images)
    return weights(is_arrival, alone, strata(is_arrival, alone, generator), relabellings, generator)


def of(found: TwoSample) -> TestsOfSamples:
    """The only family's."""
    return found.families["x"]


def interval(rate: float, count: int) -> tuple[float, float]:
    """In which the share of `count` tries lies but once in a thousand."""
    low, high = stats.binom.interval(0.999, count, rate)
    return low / count, high / count


def test_statistics_are_those_of_the_books() -> None:
    generator = np.random.default_rng(1)
    x, y = drawn(generator, 40) + 0.3, drawn(generator, 60)
    both = np.concatenate([x, y])
    w_NL = labelled(40, 100, 50, generator)
    ks = ks_statistics(w_NL, both)
    t_squared, mmd = mean_shift(w_NL, both), discrepancy(w_NL, both, generator)
    distances = np.square(both[:, None] - both[None]).sum(axis=-1)
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(100, 1)]))
    for labelling in range(51):
        chosen = w_NL[:, labelling] > 0
        a, b = both[chosen], both[~chosen]
        assert chosen.sum() == 40
        for d in range(4):
            assert ks[d, labelling] == pytest.approx(stats.ks_2samp(a[:, d], b[:, d]).statistic)
        inside = kernel[chosen][:, chosen].mean() + kernel[~chosen][:, ~chosen].mean()
        assert mmd[labelling] == pytest.approx(inside - 2 * kernel[chosen][:, ~chosen].mean())
        # Hotelling's T² = t / (1 - t) · (N - 2), where t is of the covariance of all together.
        pooled = (39 * np.cov(a.T) + 59 * np.cov(b.T)) / 98
        difference = a.mean(axis=0) - b.mean(axis=0)
        hotelling = 40 * 60 / 100 * difference @ np.linalg.solve(pooled, difference)
        t = 40 * 60 / 100 * t_squared[labelling] / 100
        assert t / (1 - t) * 98 == pytest.approx(hotelling)


def test_the_kernel_is_the_same_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(13)
    x = drawn(generator, 70)
    w_NL = labelled(30, 70, 20, generator)
    whole = discrepancy(w_NL, x, np.random.default_rng(0))
    distances = np.square(x[:, None] - x[None]).sum(axis=-1)
    # The median of a part is another one, and so is the kernel: hold it fixed.
    monkeypatch.setattr(np, "median", lambda values: np.quantile(distances[distances > 0], 0.5))
    monkeypatch.setattr("vae_core.stats.two_sample.ROWS", 16)
    np.testing.assert_allclose(discrepancy(w_NL, x, np.random.default_rng(0)), whole)


def test_equal_values_are_one_step_of_a_distribution_function() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.integers(0, 4, (50, 1)), generator.integers(0, 4, (70, 1))
    w_NL = labelled(50, 120, 1, generator)
    found = ks_statistics(w_NL, np.concatenate([x, y]).astype(float))[0, 0]
    assert found == pytest.approx(stats.ks_2samp(x[:, 0], y[:, 0]).statistic)


@pytest.mark.parametrize(("ours", "theirs"), [(5, 5), (4, 11), (11, 4)])
def test_relabellings_swap_blocks_within_strata(ours: int, theirs: int) -> None:
    generator = np.random.default_rng(14)
    blocks_N = np.repeat(np.arange(ours + theirs), 3)
    is_arrival_N = blocks_N < ours
    strata_N = strata(is_arrival_N, blocks_N, generator)
    labels_NL = weights(is_arrival_N, blocks_N, strata_N, 400, generator) > 0
    assert (labels_NL[:, 0] == is_arrival_N).all()
    assert (labels_NL.reshape(ours + theirs, 3, 401) == labels_NL[::3, None]).all()
    fewer = min(ours, theirs)
    for stratum in range(fewer):
        of_L = labels_NL[strata_N == stratum][::3]
        lone_L = of_L.sum(axis=0) if ours == fewer else (~of_L).sum(axis=0)
        assert (lone_L == 1).all()
        share = 1 / len(of_L) if ours == fewer else 1 - 1 / len(of_L)
        np.testing.assert_allclose(of_L.mean(axis=1), share, atol=0.1)
    assert np.ptp(np.bincount(strata_N)) <= 3


def test_normal_scores_are_of_mean_ranks() -> None:
    x = np.random.default_rng(15).integers(0, 30, (50, 2)).astype(float)
    found = normal_scores(np.c_[x, np.ones(50)])
    for d in range(2):
        known = stats.norm.ppf((stats.rankdata(x[:, d]) - 0.5) / 50)
        np.testing.assert_allclose(found[:, d], known, atol=1e-9)
    assert (found[:, 2] == 0).all()


@pytest.mark.slow
def test_nights_like_the_reference_are_false_alarms_as_often_as_was_said() -> None:
    """The reference is redrawn for each: with one that is fixed the rate would be that one's."""
    generator = np.random.default_rng(3)
    found = []
    for night in range(NIGHTS):
        # Skewed and heavy-tailed: nothing is assumed of the distribution.
        x, y = (np.exp(drawn(generator, count)) for count in (40, 80))
        found.append(told(x, y, night))
    low, high = interval(ALPHA, NIGHTS)
    assert low <= np.mean([one.p_value <= ALPHA for one in found]) <= high
    for name in ("hotelling", "mmd", "classifier", "ks"):
        assert low <= np.mean([of(one).tests[name] <= ALPHA for one in found]) <= high, name
    assert np.mean([of(one).ks_p_D.min() <= ALPHA for one in found]) <= high  # of the whole family


@pytest.mark.slow
def test_what_images_of_a_block_share_is_no_evidence() -> None:
    """Each block has a look of its own, on both sides alike."""
    generator = np.random.default_rng(4)

    def side(blocks: int) -> tuple[np.ndarray, np.ndarray]:
        of = np.repeat(np.arange(blocks), 10)
        return drawn(generator, blocks)[of] + 0.5 * drawn(generator, 10 * blocks), of

    blind, aware = [], []
    for night in range(NIGHTS):
        (x, of_x), (y, of_y) = side(8), side(16)
        aware.append(told(x, y, night, arrival_blocks_N=of_x, reference_blocks_N=of_y).p_value)
        if night < 50:
            blind.append(told(x, y, night).p_value)
    low, high = interval(ALPHA, NIGHTS)
    assert low <= np.mean(np.array(aware) <= ALPHA) <= high
    assert np.mean(np.array(blind) <= ALPHA) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "test"),
    [
        (lambda x: x + np.array([0.5, 0, 0, 0]), "hotelling"),
        (lambda x: x * 1.6, "mmd"),
        (lambda x: x * 1.6, "classifier"),
        (lambda x: np.where(np.arange(4) == 2, np.abs(x), x), "ks"),
        # A new kind, one in ten.
        (lambda x: np.where((np.arange(len(x)) % 10 == 0)[:, None], x + 3, x), "mmd"),
    ],
)
def test_a_change_is_found_by_the_test_for_it_and_by_all_together(change, test: str) -> None:
    generator = np.random.default_rng(5)
    found = [told(change(drawn(generator, 150)), drawn(generator, 300), n) for n in range(40)]
    assert np.mean([of(one).tests[test] <= 0.05 for one in found]) > 0.8
    assert np.mean([one.p_value <= 0.05 for one in found]) > 0.8


def test_the_dimension_that_changed_is_named() -> None:
    generator = np.random.default_rng(6)
    found = told(drawn(generator, 200) + np.array([0, 0, 1.0, 0]), drawn(generator, 200))
    assert of(found).ks_D.argmax() == 2
    assert of(found).ks_p_D[2] == found.smallest_p == 0.01
    assert of(found).ks_p_D[[0, 1, 3]].min() > 0.05
    effects = of(found).effects
    assert 0.7 < effects["hotelling"] < 1.2
    # Two Gaussians one standard deviation apart: Φ(1/√2).
    assert 0.6 < effects["classifier"] < stats.norm.cdf(1 / np.sqrt(2)) + 0.08


def test_it_is_the_same_for_the_same_seed_and_any_scale() -> None:
    generator = np.random.default_rng(7)
    x, y = drawn(generator, 60), drawn(generator, 90)
    first = told(x, y)
    assert told(x, y).p_value == first.p_value
    scaled = told(x * [1e6, 1e-6, 1, 3] + 100, y * [1e6, 1e-6, 1, 3] + 100)
    assert of(scaled).tests == pytest.approx(of(first).tests, abs=0.011)


def test_what_does_not_vary_is_no_difference() -> None:
    generator = np.random.default_rng(8)
    x, y = drawn(generator, 40), drawn(generator, 40)
    constant = told(np.c_[x, np.ones(40)], np.c_[y, np.ones(40)])
    assert of(constant).ks_D[4] == pytest.approx(0.0, abs=1e-12)
    nothing = told(np.ones((10, 2)), np.ones((10, 2)))
    assert nothing.p_value > 0.5
    assert (of(nothing).ks_p_D == 1.0).all()


@pytest.mark.parametrize(
    ("x", "y", "blocks", "said"),
    [
        (np.ones((1, 2)), np.ones((9, 2)), None, "two images"),
        (np.ones((9, 2)), np.ones((9, 2)), np.zeros(9), "two blocks"),
        (np.full((9, 2), np.nan), np.ones((9, 2)), None, "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(x, y, blocks, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        told(x, y, arrival_blocks_N=blocks)


def test_families_of_other_images_are_refused() -> None:
    x, y = np.ones((9, 2)), np.ones((8, 2))
    with pytest.raises(ValueError, match="same images"):
        two_sample({"a": (x, y), "b": (x, x)}, seed=0)


def test_a_change_of_one_test_is_not_lost_among_the_others() -> None:
    """Of sixteen tests each has a labelling that leads in it: by ranks alone they would all tie."""
    generator = np.random.default_rng(9)
    pairs = {n: (drawn(generator, 150), drawn(generator, 150)) for n in ("a", "b", "c")}
    moved = (drawn(generator, 150) + np.array([1.0, 0, 0, 0]), drawn(generator, 150))
    found = two_sample(pairs | {"moved": moved}, seed=0, relabellings=499)
    assert found.p_value == found.smallest_p == 1 / 500
    assert min(found.families["moved"].tests.values()) == 1 / 500


def test_evidence_keeps_the_order_and_goes_on_where_ranks_end() -> None:
    values = np.r_[40.0, np.random.default_rng(10).exponential(size=1999)]
    found = evidence(values)
    order = np.argsort(values)
    assert (np.diff(found[order]) >= -1e-12).all()
    # -log p of a standard exponential is the value itself.
    np.testing.assert_allclose(np.median(found[1:] - values[1:]), 0.0, atol=0.1)
    assert found[0] == pytest.approx(40.0, rel=0.4)
    assert found[0] > np.log(2000) + 10
    tied = evidence(np.r_[np.ones(1000), np.zeros(1000)])
    np.testing.assert_allclose(tied[:1000], np.log(2))


@pytest.mark.slow
def test_families_together_alarm_as_often_as_was_said() -> None:
    """Of very different sizes and shapes, and one the copy of another."""
    generator = np.random.default_rng(11)
    found = []
    for night in range(NIGHTS):
        x, y = drawn(generator, 40, 6), drawn(generator, 60, 6)
        families = {"wide": (x, y), "narrow": (np.exp(x[:, :1]), np.exp(y[:, :1])), "same": (x, y)}
        families["rare"] = (x[:, 1:2] > 1.5, y[:, 1:2] > 1.5)
        found.append(two_sample(families, seed=night, relabellings=199).p_value)
    for level in (ALPHA, 0.02):
        low, high = interval(level, NIGHTS)
        assert low <= np.mean(np.array(found) <= level) <= high, level


@pytest.mark.slow
def test_the_smallest_shift_is_found_as_often_as_was_said() -> None:
    """By Hotelling's test of one family at its own level; by all together at least as often."""
    generator = np.random.default_rng(12)
    level, tests, dimensions = 0.05, 4, 8
    alone = smallest_shift(100, 150, dimensions, level)
    shared = smallest_shift(100, 150, dimensions, level / tests)
    found = {"alone": [], "shared": []}
    nights = sampled(150)
    for night in range(nights):
        x, y = drawn(generator, 100, dimensions), drawn(generator, 150, dimensions)
        direction = generator.standard_normal(dimensions)
        direction /= np.linalg.norm(direction)
        seen = two_sample({"x": (x + alone * direction, y)}, seed=night, relabellings=199)
        found["alone"].append(of(seen).tests["hotelling"] <= level)
        seen = two_sample({"x": (x + shared * direction, y)}, seed=night, relabellings=199)
        found["shared"].append(seen.p_value <= level)
    low, high = interval(0.8, nights)
    assert low <= np.mean(found["alone"]) <= high
    assert np.mean(found["shared"]) >= low

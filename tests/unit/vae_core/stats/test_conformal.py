from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from vae_core.stats.bootstrap import interval_of_two
from vae_core.stats.conformal import fewest_flaggable, p_values, q_values, share_below
from vae_core.stats.metrics import auroc


def test_p_values_by_hand() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 4.0])
    found = p_values(np.array([0.0, 2.0, 3.0, 4.0, 5.0]), calibration)
    np.testing.assert_allclose(found, [1.0, 0.8, 0.4, 0.4, 0.2])


def test_calibration_images_are_held_against_the_others() -> None:
    calibration = np.array([1.0, 2.0, 3.0, 4.0])
    found = p_values(calibration, calibration, leave_one_out=True)
    by_hand = [
        (1 + sum(c >= s for j, c in enumerate(calibration) if j != i)) / 4
        for i, s in enumerate(calibration)
    ]
    np.testing.assert_allclose(found, by_hand)


def test_a_calibration_image_is_above_itself_whatever_the_last_digit() -> None:
    calibration = np.array([1.0, 2.0, 3.0, 4.0])
    found = p_values(np.nextafter(calibration, 9.0), calibration, leave_one_out=True)
    assert found[-1] == 0.25


def test_a_missing_score_has_no_p_value() -> None:
    assert np.isnan(p_values(np.array([np.nan]), np.array([1.0])))[0]


def test_p_values_of_normal_images_are_super_uniform_over_calibration_draws() -> None:
    rng = np.random.default_rng(0)
    draws = 4000
    found = np.array(
        [
            p_values(rng.normal(size=1), np.sort(rng.normal(size=99)))[0]
            for _ in range(draws)  # calibration redrawn in every replicate
        ]
    )
    for alpha in (0.01, 0.05, 0.1, 0.5):
        share = (found <= alpha).mean()
        assert share <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / draws)
        assert share >= alpha - 4 * np.sqrt(alpha * (1 - alpha) / draws)  # exact here: continuous


def test_auroc_against_every_pair() -> None:
    rng = np.random.default_rng(0)
    scores, anomalous = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[anomalous]
        for b in scores[~anomalous]
    ]
    assert auroc(scores, anomalous) == pytest.approx(np.mean(pairs))


def test_auroc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="0 anomalous and 3 normal"):
        auroc(np.arange(3.0), np.zeros(3, bool))


def test_q_values_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for calibrated in (20, 1000):
        p = rng.integers(1, calibrated + 2, 300) / (calibrated + 1)
        values, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
        np.testing.assert_allclose(
            q_values(values, counts)[inverse], false_discovery_control(p), rtol=1e-12
        )


def test_fewer_than_the_fewest_flaggable_are_never_flagged_and_as_many_are() -> None:
    for tested, calibrated, alpha in (
        (300, 60, 0.6),
        (100, 99, 0.05),
        (1000, 99, 0.1),
        (7, 5, 0.5),
    ):
        least = 1.0 / (calibrated + 1)
        few = fewest_flaggable(tested, calibrated, alpha)
        for extreme in range(1, tested):
            p = np.array([least, 1.0])
            q = q_values(p, np.array([extreme, tested - extreme]))
            assert (q[0] <= alpha * (1 + 1e-12)) == (extreme >= few), (tested, extreme)


@dataclasses.dataclass
class Nights:
    """Simulated nights, with calibration redrawn for each."""

    false: np.ndarray  # share of normal images among the flagged
    power: np.ndarray  # share of anomalies that are flagged
    any: np.ndarray  # whether anything is


def simulate(nights: int, normal: int, anomalous: int, alpha: float, shift: float = 3.5) -> Nights:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(nights):
        calibration = np.sort(rng.normal(size=500))
        scores = np.concatenate([rng.normal(size=normal), shift + rng.normal(size=anomalous)])
        p = p_values(scores, calibration)
        values, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
        flagged = q_values(values, counts)[inverse] <= alpha
        wrong, right = flagged[:normal].sum(), flagged[normal:].sum()
        found.append((wrong / max(1, wrong + right), right / max(1, anomalous), flagged.any()))
    return Nights(*np.array(found, float).T)


def test_the_mean_false_discovery_rate_is_the_nominal_one_times_the_normal_share(capsys) -> None:
    normal, anomalous, alpha, nights = 450, 50, 0.1, 600
    found = simulate(nights, normal, anomalous, alpha)
    mean, error = found.false.mean(), found.false.std() / np.sqrt(nights)
    bound = alpha * normal / (normal + anomalous)
    with capsys.disabled():
        told = f"\n  FDR {mean:.4f} ± {error:.4f}, at most {bound}; power {found.power.mean():.3f}"
        sys.stdout.write(told + "\n")
    assert mean <= bound + 3 * error
    assert mean >= 0.5 * bound  # no procedure that flags nothing
    assert found.power.mean() > 0.5


def test_a_clean_night_flags_anything_with_probability_alpha_at_most() -> None:
    alpha, nights = 0.1, 2000
    share = simulate(nights, 20, 0, alpha).any.mean()
    assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / nights)
    assert share >= 0.3 * alpha


@pytest.mark.slow
@pytest.mark.parametrize(("images", "calibration"), [(439, 689), (500, 100)])
def test_the_interval_of_a_share_covers_that_of_a_calibrated_model(images, calibration) -> None:
    """Of 400 models whose scores and calibration scores are of one distribution: the share is to
    be 0.05. With the scores alone drawn anew, three in ten of the first intervals miss it, and
    most of the second."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        scores_N = generator.exponential(size=images)
        held_M = np.sort(generator.exponential(size=calibration))
        share = share_below(0.05, scores_N, held_M)
        found = interval_of_two(
            share, images, calibration, resamples=300, confidence=0.95, seed=seed
        )
        assert float(found.value) == (p_values(scores_N, held_M) <= 0.05).mean()
        covered += bool(found.low <= 0.05 <= found.high)
    assert 0.925 <= covered / 400 <= 0.985


def test_a_share_is_that_of_p_values_by_resampled_calibration_scores() -> None:
    generator = np.random.default_rng(1)
    scores_N, held_M = generator.normal(size=30).round(1), np.sort(generator.normal(size=25))
    counts_RN, counts_RM = (generator.multinomial(n, [1 / n] * n, 4) * 1.0 for n in (30, 25))
    found = share_below(0.2, scores_N, held_M)(counts_RN, counts_RM)
    for row in range(4):
        scores = np.repeat(scores_N, counts_RN[row].astype(int))
        held = np.repeat(held_M, counts_RM[row].astype(int))
        assert found[row] == pytest.approx((p_values(scores, held) <= 0.2).mean())
    assert len(set(found.tolist())) > 1

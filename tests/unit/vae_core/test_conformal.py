from __future__ import annotations

import numpy as np
import pytest

from vae_core.conformal import p_values
from vae_core.metrics import auroc


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

"""Conformal p-values: a score compared with the scores of held-out normal images; which to flag.

Vovk, Gammerman & Shafer 2005, "Algorithmic learning in a random world", section 2.2; Bates et
al. 2023, "Testing for outliers with conformal p-values", whose theorem 2 is why the
Benjamini–Hochberg procedure holds the false-discovery rate although all p-values share their
calibration images: on average over calibration draws, at (share of normal images) · α.
"""

from __future__ import annotations

import math

import numpy as np

from vae_core.stats.bootstrap import OfTwo


def p_values(
    scores_N: np.ndarray, calibration_M: np.ndarray, *, leave_one_out: bool = False
) -> np.ndarray:
    """(1 + #{calibration ≥ score}) / (M + 1), shape (N,); NaN where the score is NaN.

    calibration_M is sorted ascending. leave_one_out: the images are calibration images
    themselves, each compared with the others: (#{calibration ≥ score}) / M.
    If normal images are exchangeable with the calibration images, the values are
    super-uniform: P(p ≤ α) ≤ α, on average over calibration draws.
    """
    above_N = len(calibration_M) - np.searchsorted(calibration_M, scores_N, side="left")
    if leave_one_out:
        # Its own score is among them, but for the last digit perhaps.
        values = np.maximum(above_N, 1) / max(1, len(calibration_M))
    else:
        values = (1.0 + above_N) / (len(calibration_M) + 1.0)
    return np.where(np.isnan(scores_N), np.nan, values)


def share_below(alpha: float, scores_N: np.ndarray, calibration_M: np.ndarray) -> OfTwo:
    """Return the share of p-values that are at most alpha, of resampled scores and calibration
    scores.

    calibration_M is sorted ascending. All p-values share the calibration scores, so that the share
    varies with those, too: of N scores and M calibration scores it has a variance of about
    alpha (1 - alpha) (1/N + 1/M), of which resampled scores alone see the first part.
    """
    places_N = np.searchsorted(calibration_M, scores_N, side="left")

    def statistic(counts_RN: np.ndarray, counts_RM: np.ndarray) -> np.ndarray:
        above_RM = np.cumsum(counts_RM[:, ::-1], axis=1)[:, ::-1]  # as high as that one, or higher
        above_RN = np.pad(above_RM, ((0, 0), (0, 1)))[:, places_N]
        p_RN = (1.0 + above_RN) / (len(calibration_M) + 1.0)
        return (counts_RN * (p_RN <= alpha)).sum(axis=1) / counts_RN.sum(axis=1)

    return statistic


def q_values(p_K: np.ndarray, counts_K: np.ndarray) -> np.ndarray:
    """Return the smallest level at which Benjamini–Hochberg flags each p-value of a batch, (K,).

    p_K: the distinct p-values of the whole batch, ascending, none of them NaN; counts_K: how many
    images have each. There are no more of them than calibration images, however large the batch.
    q of the i-th smallest p-value of N is min over j ≥ i of p_j N / j, at most 1: Benjamini &
    Hochberg 1995, "Controlling the false discovery rate".
    """
    scaled_K = p_K * counts_K.sum() / np.cumsum(counts_K)
    return np.minimum(np.minimum.accumulate(scaled_K[::-1])[::-1], 1.0)


def fewest_flaggable(tested: int, calibrated: int, alpha: float) -> int:
    """How many images of a batch must be extreme together before any can be flagged.

    No p-value is below 1 / (calibrated + 1), so fewer than tested / ((calibrated + 1) alpha) of
    that value are never enough.
    """
    # Rounded, because 10 / (0.1 * 100) is not to be 1.0000000000000002.
    return max(1, math.ceil(round(tested / ((calibrated + 1) * alpha), 9)))

"""Conformal p-values: a score held against the scores of held-out normal images.

Vovk, Gammerman & Shafer 2005, "Algorithmic learning in a random world", section 2.2; Bates et
al. 2023, "Testing for outliers with conformal p-values".
"""

from __future__ import annotations

import numpy as np


def p_values(
    scores_N: np.ndarray, calibration_M: np.ndarray, *, leave_one_out: bool = False
) -> np.ndarray:
    """(1 + #{calibration ≥ score}) / (M + 1), shape (N,); NaN where the score is NaN.

    calibration_M is sorted ascending. leave_one_out: the images are calibration images
    themselves, each held against the others: (#{calibration ≥ score}) / M.
    If normal images are exchangeable with the calibration images, the values are
    super-uniform: P(p ≤ α) ≤ α, on average over calibration draws.
    """
    above_N = len(calibration_M) - np.searchsorted(calibration_M, scores_N, side="left")
    if leave_one_out:
        values = above_N / max(1, len(calibration_M))
    else:
        values = (1.0 + above_N) / (len(calibration_M) + 1.0)
    return np.where(np.isnan(scores_N), np.nan, values)

"""How well a score ranks."""

from __future__ import annotations

import numpy as np


def auroc(scores_N: np.ndarray, anomalous_N: np.ndarray) -> float:
    """P(score of an anomalous image > score of a normal one), ties counted half.

    The Mann–Whitney statistic (Hanley & McNeil 1982). Raises ValueError unless both kinds exist.
    """
    scores, anomalous = np.asarray(scores_N, np.float64), np.asarray(anomalous_N, bool)
    positives, negatives = int(anomalous.sum()), int((~anomalous).sum())
    if positives == 0 or negatives == 0:
        raise ValueError(f"{positives} anomalous and {negatives} normal images; need both")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    rank_sum = float(ranks[anomalous].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)

"""How well a score ranks anomalous images before normal ones, of many resamples at once."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Images by rising score. images_N: their rows. starts_G: where each distinct score begins."""

    images_N: np.ndarray
    starts_G: np.ndarray
    anomalous_N: np.ndarray

    @classmethod
    def of(cls, scores_N: np.ndarray, anomalous_N: np.ndarray) -> Ranking:
        """anomalous: 1 or 0; NaN, as in scores, for images that are left out."""
        anomalous = np.asarray(anomalous_N, np.float64)
        kept = np.flatnonzero(~np.isnan(scores_N) & ~np.isnan(anomalous))
        images = kept[np.argsort(scores_N[kept], kind="stable")]
        sorted_N = scores_N[images]
        starts = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
        return cls(images, starts[: len(images)], anomalous[images])

    def auroc(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,): P(an anomalous image scores higher than a normal one), ties half; Mann-Whitney.

        NaN where a resample has only one kind. Hanley & McNeil 1982.
        """
        anomalous_RG, normal_RG = self._groups(counts_RN)
        below_RG = np.cumsum(normal_RG, axis=1) - normal_RG / 2.0
        pairs_R = anomalous_RG.sum(axis=1) * normal_RG.sum(axis=1)
        return (anomalous_RG * below_RG).sum(axis=1) / pairs_R

    def average_precision(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,): Σ (R_n - R_n-1) P_n over falling thresholds; equal scores are one threshold.

        NaN where a resample has no anomalous image. As scikit-learn has it.
        """
        anomalous_RG, normal_RG = (part[:, ::-1] for part in self._groups(counts_RN))
        found_RG = np.cumsum(anomalous_RG, axis=1)
        flagged_RG = found_RG + np.cumsum(normal_RG, axis=1)
        precision_RG = found_RG / np.maximum(flagged_RG, 1.0)
        return (anomalous_RG * precision_RG).sum(axis=1) / anomalous_RG.sum(axis=1)

    def _groups(self, counts_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many anomalous and normal images each distinct score has."""
        if not len(self.images_N):
            return np.zeros((len(counts_RN), 0)), np.zeros((len(counts_RN), 0))
        sorted_RN = counts_RN[:, self.images_N]
        anomalous_RN = sorted_RN * self.anomalous_N
        anomalous_RG = np.add.reduceat(anomalous_RN, self.starts_G, axis=1)
        all_RG = np.add.reduceat(sorted_RN, self.starts_G, axis=1)
        return anomalous_RG, all_RG - anomalous_RG

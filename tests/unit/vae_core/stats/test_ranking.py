"""AUROC and average precision against scikit-learn, resample by resample."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vae_core.stats.metrics import auroc
from vae_core.stats.ranking import Ranking


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_they_are_those_of_scikit_learn_ties_and_all(decimals: int) -> None:
    generator = np.random.default_rng(0)
    anomalous = generator.random(120) < 0.2
    scores = np.round(generator.normal(size=120) + anomalous, decimals)
    counts = generator.multinomial(120, np.full(120, 1 / 120), size=20).astype(float)
    ranking = Ranking.of(scores, anomalous)
    areas, precisions = ranking.auroc(counts), ranking.average_precision(counts)
    for row, area, precision in zip(counts, areas, precisions, strict=True):
        weight = {"sample_weight": row}
        assert area == pytest.approx(roc_auc_score(anomalous, scores, **weight))
        assert precision == pytest.approx(average_precision_score(anomalous, scores, **weight))
    ones = np.ones((1, 120))
    assert ranking.auroc(ones)[0] == pytest.approx(auroc(scores, anomalous))


def test_images_without_a_score_or_a_label_are_left_out() -> None:
    scores = np.array([1.0, 2.0, 3.0, np.nan, 9.0])
    anomalous = np.array([0.0, 1.0, 0.0, 1.0, np.nan])
    assert Ranking.of(scores, anomalous).auroc(np.ones((1, 5)))[0] == 0.5


def test_one_kind_alone_has_neither() -> None:
    with np.errstate(invalid="ignore"):
        for scores, anomalous in ((np.arange(3.0), np.zeros(3)), (np.zeros(0), np.zeros(0))):
            ranking = Ranking.of(scores, anomalous)
            counts = np.ones((2, len(scores)))
            assert np.isnan(ranking.auroc(counts)).all()
            assert np.isnan(ranking.average_precision(counts)).all()

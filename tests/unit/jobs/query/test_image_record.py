"""What is told of one image, and of the nights of a model."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.engine import runner
from jobs.lake.paths import LakePaths as Stored
from jobs.query.api import Lake
from jobs.query.image_record import evidence
from jobs.query.nights import nights
from tests.explored import NIGHTS, make_lake
from tests.helpers import image_ids
from tests.inline import InlineEmbed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(make_lake(tmp_path_factory.mktemp("evidence")).uri)


def test_an_image_comes_with_its_rows_its_pixels_and_its_reconstruction(lake: Lake) -> None:
    (image_id,) = image_ids([17])
    found = evidence(lake, image_id, lake.embeddings("m"))
    assert found.staged["image_id"] == found.scored["image_id"] == image_id
    assert found.scored["neg_elbo"] > 0
    assert not {"image", "embedding", "embedding_log_var"} & {*found.staged, *found.scored}
    assert found.pixels_HWC is not None
    assert found.reconstruction_HWC is not None
    assert found.pixels_HWC.shape == found.reconstruction_HWC.shape == (28, 28, 1)
    assert not np.array_equal(found.pixels_HWC, found.reconstruction_HWC)


def test_of_an_unknown_image_nothing_is_known(lake: Lake) -> None:
    found = evidence(lake, "f" * 64, lake.embeddings("m"))
    assert (found.staged, found.scored, found.pixels_HWC) == ({}, {}, None)
    (image_id,) = image_ids([17])
    without = evidence(lake, image_id, None)
    assert without.staged
    assert not without.scored


def test_nights_come_newest_first_and_drift_makes_their_calibration_invalid(lake: Lake) -> None:
    second, first = nights(lake.embeddings("m"))
    assert (first.night, second.night) == NIGHTS
    assert first.calibration_valid
    assert first.drift_tested
    assert not second.calibration_valid
    assert "drift" in second.why
    for night in (first, second):
        asked = lake.embeddings("m").anomalies(night=night.night, flagged=True, top=1000)
        assert len(asked) == night.flagged > 0
        assert night.tested >= night.flagged
        assert night.alpha == 0.5


def test_of_a_night_whose_drift_was_not_tested_validity_is_not_known(trained: Stored) -> None:
    runner.run(InlineEmbed(trained))
    (night,) = nights(Lake(trained.uri).embeddings("m"))
    assert not night.drift_tested
    assert night.calibration_valid


def test_a_p_value_of_a_night_that_drifted_is_doubted(lake: Lake) -> None:
    of = lake.embeddings("m")
    told = {}
    for night in NIGHTS:
        (worst,) = of.anomalies(night=night, top=1).to_pylist()
        told[night] = evidence(lake, worst["image_id"], of).doubt
    assert told[NIGHTS[0]] == ""
    assert "drift was found" in told[NIGHTS[1]]

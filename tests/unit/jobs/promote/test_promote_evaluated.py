"""The gate on bundles that have really been trained, evaluated and compared."""

from __future__ import annotations

import pytest

from jobs.cluster.settings import RaySettings
from jobs.engine import runner
from jobs.errors import InputError
from jobs.evaluate.job import EvaluateJob
from jobs.evaluate.settings import EvaluateSettings
from jobs.lake.paths import LakePaths
from jobs.promote.settings import GateRule
from jobs.tables import catalog
from tests.inline import NIGHT, Inline, InlineTrain
from tests.promotions import champion, gated, named

# Of 600 images some 30 are of the test split: too few to rule a loss of accuracy out.
RULE = GateRule(probe_loss=1.0, auroc_loss=1.0, least_images=10)


class InlineEvaluate(Inline, EvaluateJob):
    """All of evaluate but Ray."""


def evaluate(lake: LakePaths, version: str) -> None:
    told = {"dataset": "d", "model": f"m@{version}", "samples": 4, "resamples": 200}
    settings = EvaluateSettings.model_validate(told)
    runner.run(InlineEvaluate(lake, settings, NIGHT, RaySettings()))


def trained_more(lake: LakePaths, **settings) -> str:
    return runner.run(InlineTrain(lake, **settings)).counts["version"]


def checks(counts: dict) -> dict[str, bool | None]:
    return {check["name"]: check["passes"] for check in counts["checks"]}


@pytest.mark.slow
def test_the_better_bundle_passes_and_the_worse_one_does_not(trained: LakePaths) -> None:
    first = champion(trained)
    better = trained_more(trained, epochs=12)
    with pytest.raises(InputError, match=f"m@{better} has not been evaluated on"):
        gated(trained, better, rule=RULE)
    evaluate(trained, better)
    with pytest.raises(InputError, match=f"m@{first} has not been evaluated on"):
        gated(trained, better, rule=RULE)
    evaluate(trained, first)
    worse = gated(trained, first, alias="canary", rule=RULE).counts
    assert worse["promoted"]  # the first of that alias; its calibration is told
    assert checks(worse)["calibration"] is True
    counts = gated(trained, better, rule=RULE).counts
    assert counts["promoted"], counts["why"]
    assert checks(counts) == {
        "bound": True,
        "probe_accuracy": True,
        "auroc": None,  # no image of the sample is an anomaly
        "calibration": True,
        "active_units": True,
    }
    back = gated(trained, first, rule=RULE).counts
    assert not back["promoted"]
    assert checks(back)["bound"] is False
    assert named(trained) == [first, better]


@pytest.mark.slow
def test_another_likelihood_and_one_without_a_prior_do_not_pass_on_the_bound(
    trained: LakePaths,
) -> None:
    first = champion(trained)
    evaluate(trained, first)
    for settings, told in (
        ({"likelihood": {"kind": "categorical"}}, "different likelihoods"),
        (
            {"posterior": "deterministic", "objective": {"kind": "reconstruction"}},
            "the other has none",
        ),
    ):
        other = trained_more(trained, **settings)
        evaluate(trained, other)
        counts = gated(trained, other, rule=RULE).counts
        assert checks(counts)["bound"] is False
        assert told in counts["why"]
    assert catalog.aliases(trained, "m") == {"champion": first}

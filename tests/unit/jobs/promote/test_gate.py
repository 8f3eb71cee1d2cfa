"""The gate's rule: what each number does to the verdict, and what is said of it."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest

from jobs.evaluate.compare import Difference
from jobs.promote import gate
from jobs.promote.gate import Check, Verdict
from jobs.promote.settings import GateRule
from vae_core.stats.bootstrap import intervals, mean

RULE = GateRule(probe_loss=0.02, auroc_loss=0.02)


def row(metric: str, value: float | None, of: str | None = None, **more: Any) -> dict[str, Any]:
    told = {"metric": metric, "of": of, "value": value, "note": None, "images": 500}
    return {**told, "low": None, "high": None, **more}


def bundle(
    *,
    neg_elbo: float | None = 100.0,
    probe: float | None = 0.8,
    auroc: float | None = 0.9,
    score: str = "neg_elbo",
    calibration: float | None = 0.5,
    active: float | None = 16,
) -> list[dict[str, Any]]:
    """What evaluate tells of a bundle."""
    ends = {} if auroc is None else {"low": auroc - 0.01, "high": auroc + 0.01}
    return [
        row("neg_elbo", neg_elbo),
        row("recon_nll", 80.0),
        row("probe_accuracy", probe, "label", note=None if probe is not None else "one class only"),
        row("auroc", auroc, score, **ends),
        row("auroc", 0.99, "recon_mse", low=0.98, high=1.0),
        row("calibration_p", calibration, score, note="50 images are too few"),
        row("active_units", active),
    ]


def paired(
    metric: str, low: float | None, middle: float | None, high: float | None, of: str | None = None
) -> Difference:
    unit, better = ("nats", "lower") if metric in ("neg_elbo", "recon_nll") else (None, "higher")
    return Difference(metric, of, 1.0, 1.0, middle, low, high, unit, better, 500, None)


def differences(
    bound: tuple[float, float, float] = (-3.0, -2.0, -1.0),
    probe: tuple[float, float, float] = (-0.01, 0.0, 0.01),
    auroc: tuple[float, float, float] = (-0.01, 0.0, 0.01),
    metric: str = "neg_elbo",
) -> list[Difference]:
    """Lower end, middle and upper end of challenger minus champion."""
    return [
        paired(metric, *bound),
        paired("probe_accuracy", *probe, of="label"),
        paired("auroc", *auroc, of="neg_elbo"),
        paired("auroc", -0.5, -0.4, -0.3, of="recon_mse"),  # decides nothing
    ]


def judged(
    found: list[Difference] | None = None,
    challenger: list[dict] | None = None,
    champion: list[dict] | None = None,
    rule: GateRule = RULE,
) -> Verdict:
    return gate.verdict(
        rule,
        differences() if found is None else found,
        bundle() if challenger is None else challenger,
        bundle() if champion is None else champion,
    )


def check(found: Verdict, name: str) -> Check:
    (only,) = (each for each in found.checks if each.name == name)
    return only


def failed(found: Verdict) -> list[str]:
    assert found.passes == all(each.passes is not False for each in found.checks)
    return [each.name for each in found.checks if each.passes is False]


def test_a_better_challenger_passes_and_its_gain_is_told_as_a_gain() -> None:
    found = judged()
    assert failed(found) == []
    assert found.why == (
        "the bound gains 2 nats an image (95% interval 1 to 3 on 500 images), whose lower end is "
        "above 0"
    )


@pytest.mark.parametrize(
    ("bound", "gain", "passes"),
    [
        ((-3.0, -2.0, -0.001), 0.0, True),
        ((-3.0, -2.0, 0.0), 0.0, False),  # equal is no improvement
        ((-3.0, -2.0, 0.5), 0.0, False),  # better in the middle alone
        ((1.0, 2.0, 3.0), 0.0, False),
        ((-3.0, -2.0, -1.0), 0.999, True),
        ((-3.0, -2.0, -1.0), 1.0, False),
        ((0.5, 1.0, 1.5), -2.0, True),  # a rule may allow a loss
    ],
)
def test_the_lower_end_of_the_paired_gain_decides(bound, gain, passes: bool) -> None:
    found = judged(differences(bound), rule=GateRule(gain_nats=gain))
    assert failed(found) == ([] if passes else ["bound"])


@pytest.mark.parametrize("name", ["probe_accuracy", "auroc"])
@pytest.mark.parametrize(
    ("ends", "passes", "told"),
    [
        ((-0.02, 0.0, 0.02), True, "a loss above 0.02 is ruled out"),
        ((-0.021, 0.0, 0.02), False, "a loss above 0.02 cannot be ruled out"),
        ((-0.05, -0.03, -0.01), False, "more than 0.02 is lost"),
        ((0.1, 0.2, 0.3), True, "a loss above 0.02 is ruled out"),
    ],
)
def test_a_loss_has_to_be_ruled_out(name: str, ends, passes: bool, told: str) -> None:
    found = judged(differences(**{name.removesuffix("_accuracy"): ends}))
    assert failed(found) == ([] if passes else [name])
    assert told in check(found, name).told


def test_a_margin_of_a_rule_is_the_one_that_counts() -> None:
    wide = differences(probe=(-0.1, 0.0, 0.1), auroc=(-0.1, 0.0, 0.1))
    assert failed(judged(wide, rule=GateRule(probe_loss=0.1))) == ["auroc"]
    assert failed(judged(wide, rule=GateRule(auroc_loss=0.1))) == ["probe_accuracy"]


@pytest.mark.parametrize(("p_value", "passes"), [(0.001, True), (0.0009, False), (1.0, True)])
def test_calibration_has_to_be_valid(p_value: float, passes: bool) -> None:
    found = judged(challenger=bundle(calibration=p_value), champion=bundle(calibration=0.0))
    assert failed(found) == ([] if passes else ["calibration"])
    assert "p-values of neg_elbo are" in check(found, "calibration").told


@pytest.mark.parametrize(("active", "passes"), [(8, True), (7, False), (32, True)])
def test_latents_must_not_collapse(active: float, passes: bool) -> None:
    found = judged(challenger=bundle(active=active))
    assert failed(found) == ([] if passes else ["active_units"])
    assert f"{active} of its latents are active, of the champion's 16" in found.checks[-1].told


def test_without_labels_that_is_said_and_nothing_fails() -> None:
    bare = bundle(probe=None, auroc=None)
    found = judged(challenger=bare, champion=bare)
    assert failed(found) == []
    assert check(found, "probe_accuracy") == Check(
        "probe_accuracy", None, "the probe was not checked: one class only"
    )
    assert "no image is known to be an anomaly" in check(found, "auroc").told


@pytest.mark.parametrize("missing", ["probe", "auroc"])
@pytest.mark.parametrize("of", ["challenger", "champion"])
def test_what_one_of_them_was_not_asked_does_not_pass(missing: str, of: str) -> None:
    found = judged(**{of: bundle(**{missing: None})})
    (name,) = failed(found)
    assert name.startswith(missing)
    assert f"is not known of the {of}: evaluate both" in check(found, name).told


def test_a_challenger_without_evaluated_numbers_does_not_pass() -> None:
    nothing = judged([], [], bundle())
    assert failed(nothing) == ["bound", "probe_accuracy", "auroc", "calibration", "active_units"]
    assert not judged([], [], []).passes
    short = judged(challenger=bundle(calibration=None))
    assert "nothing is known of its calibration: 50 images are too few" in short.why


def test_two_likelihoods_cannot_be_held_against_each_other_in_nats() -> None:
    found = judged(
        [
            dataclasses.replace(
                each, comparable=each.metric != "neg_elbo", note="of two likelihoods"
            )
            for each in differences()
        ]
    )
    assert failed(found) == ["bound"]
    assert found.why == "the bound cannot be compared: of two likelihoods"


@pytest.mark.parametrize("of", ["challenger", "champion"])
def test_a_prior_on_one_side_only_makes_no_bound(of: str) -> None:
    """Else a plain autoencoder, which pays no KL, would win by it."""
    both = [*differences(), paired("recon_nll", -30.0, -20.0, -10.0)]
    found = judged(both, **{of: bundle(neg_elbo=None)})
    assert failed(found) == ["bound"]
    assert "one of the two has a prior, the other has none" in found.why


def test_without_priors_the_reconstruction_likelihood_decides() -> None:
    plain = bundle(neg_elbo=None)
    assert judged(differences(metric="recon_nll"), plain, plain).passes
    worse = judged(differences((1.0, 2.0, 3.0), metric="recon_nll"), plain, plain)
    assert failed(worse) == ["bound"]
    assert "the reconstruction likelihood gains -2 nats" in worse.why


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_interval_that_is_none_does_not_pass(value: float | None) -> None:
    broken = [paired("neg_elbo", -2.0, -1.0, value), *differences()[1:]]
    assert failed(judged(broken)) == ["bound"]


def test_other_decision_scores_are_compared_by_the_wider_interval() -> None:
    near = judged(challenger=bundle(score="recon_mse", auroc=0.91))
    assert failed(near) == []
    far = judged(challenger=bundle(score="recon_mse", auroc=0.89))
    assert failed(far) == ["auroc"]  # 0.88 to 0.90 against 0.89 to 0.91
    assert "AUROC of recon_mse, against neg_elbo of the champion," in far.why
    assert "-0.03 to 0.01" in far.why


def test_the_first_bundle_passes_and_its_calibration_is_told() -> None:
    found = gate.verdict(RULE, [], bundle(calibration=0.0), None)
    assert found.passes
    assert found.why == "first bundle of the alias: there is none to be compared with"
    assert "are not valid" in check(found, "calibration").told
    assert gate.verdict(RULE, [], [], None).passes


def test_all_that_fails_is_told() -> None:
    found = judged(differences((1, 2, 3), (-0.3, -0.2, -0.1)), bundle(calibration=0.0, active=1))
    assert failed(found) == ["bound", "probe_accuracy", "calibration", "active_units"]
    assert all(each.told in found.why for each in found.checks if each.passes is False)
    assert found.why.count(";") >= 3


def _drawn(random_: random.Random) -> tuple[list[Difference], list[dict[str, Any]]]:
    def ends(scale: float) -> tuple[float, float, float]:
        middle, width = random_.gauss(0, scale), abs(random_.gauss(0, scale))
        return (middle - width, middle, middle + width)

    found = differences(ends(1.0), ends(0.01), ends(0.01))
    calibration = random_.choice([0.0, 0.0005, 0.01, 0.9])
    return found, bundle(calibration=calibration, active=random_.randrange(20))


def _moved(each: Difference, by: float) -> Difference:
    ends = (each.low, each.difference, each.high)
    low, middle, high = (end + by for end in ends if end is not None)
    return dataclasses.replace(each, low=low, difference=middle, high=high)


def test_one_that_is_better_in_everything_never_fails_where_a_worse_one_passes() -> None:
    random_ = random.Random(0)
    passed = 0
    for _ in range(4000):
        rule = GateRule(gain_nats=random_.gauss(-1, 1), active_share=random_.random())
        found, rows = _drawn(random_)
        if not judged(found, rows, rule=rule).passes:
            continue
        passed += 1
        signs = {"neg_elbo": -1.0}
        better = [_moved(e, signs.get(e.metric, 1.0) * random_.expovariate(50)) for e in found]
        more = [
            r | {"value": r["value"] + random_.random() * 0.1}
            if r["metric"] in ("calibration_p", "active_units")
            else r
            for r in rows
        ]
        assert judged(better, more, rule=rule).passes
    assert 200 < passed < 3800


@pytest.mark.parametrize("images", [1, 49])
def test_of_few_images_nothing_is_believed(images: int) -> None:
    """Their bootstrap is degenerate: of one image, its interval is a point."""
    are = "1 image is" if images == 1 else "49 images are"
    told = f"{are} too few to tell, at least 50 are required"
    few = [dataclasses.replace(each, images=images) for each in differences()]
    found = judged(few)
    assert failed(found) == ["bound", "probe_accuracy", "auroc"]
    for name in failed(found):
        assert told in check(found, name).told
        assert "ruled out" not in check(found, name).told
    rows = [row | {"images": images} for row in bundle(score="recon_mse")]
    by_rows = judged(challenger=rows)
    assert failed(by_rows) == ["auroc", "calibration"]
    assert check(by_rows, "calibration").told == (
        f"whether its p-values of recon_mse are valid is not known: {told}"
    )
    assert judged(few, rule=GateRule(least_images=50)).passes is False
    assert failed(judged([dataclasses.replace(e, images=50) for e in differences()])) == []
    less = GateRule(least_images=10)
    enough = [dataclasses.replace(each, images=10) for each in differences()]
    assert failed(judged(enough, rule=less)) == []


def test_a_challenger_that_is_no_better_rarely_passes_however_many_images() -> None:
    """Paired differences of no mean, as skewed as those of images."""
    generator = np.random.default_rng(0)
    passed = {}
    for images in (2, 5, 49, 50, 200):
        passes = 0
        for seed in range(400):
            gains = generator.normal(size=images) * generator.gamma(2.0, size=images)
            ends = intervals(
                {"it": mean(gains)}, images, resamples=300, confidence=0.95, seed=seed
            )["it"]
            told = (float(ends.low), float(ends.value), float(ends.high))
            (bound, *rest) = differences(told)
            bound = dataclasses.replace(bound, images=images)
            passes += bool(check(judged([bound, *rest]), "bound").passes)
        passed[images] = passes / 400
    assert passed[2] == passed[5] == passed[49] == 0.0
    assert 0.0 < passed[50] < 0.055
    assert 0.0 < passed[200] < 0.055


@pytest.mark.parametrize(("rarer", "passes"), [(1, False), (9, False), (10, True), (None, True)])
def test_of_few_anomalies_no_auroc_is_believed(rarer: int | None, passes: bool) -> None:
    """Of one, the interval of 500 normal images around it is narrow, and says nothing of others."""
    found = [
        dataclasses.replace(each, rarer=rarer if each.metric == "auroc" else None)
        for each in differences()
    ]
    assert failed(judged(found)) == ([] if passes else ["auroc"])
    if not passes:
        told = f"{rarer} of the rarer kind (anomalous or normal) are too few to tell, at least 10"
        assert told in check(judged(found), "auroc").told
        # By two scores, too, of which each has its own interval.
        by_others = judged(found, challenger=bundle(score="recon_mse", auroc=0.95))
        assert failed(by_others) == ["auroc"]
    assert failed(judged(found, rule=GateRule(least_anomalies=1))) == []

"""The gate: whether a challenger has shown enough to take the champion's place.

Pure: numbers of `evaluations` and paired differences in, sentences out. Of the bound the gate asks
for superiority: the whole interval of the paired gain lies above `gain_nats`. Of the probe and of
AUROC it asks for non-inferiority: the whole interval of the paired difference lies above minus the
margin, so what decides is its lower end. (Piaggio et al., JAMA 308:2594, 2012: the reading of
intervals against a margin.) The bootstrap of a handful of images does not know how little it knows:
with one image, its interval is a point. So fewer than `least_images` show nothing; nor, of AUROC,
`least_anomalies`, for it is a mean over the anomalous images just as over the normal ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.evaluate.compare import Difference
    from jobs.promote.settings import GateRule

MetricRows = Sequence[dict[str, Any]]  # of one bundle in `evaluations`

CONFIDENCE = 0.95  # of the intervals, both ends together


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that is required.

    passes: None where it could not be checked, which holds nothing up. told: a sentence with its
    numbers.
    """

    name: str
    passes: bool | None
    told: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the challenger may have the alias, and why."""

    passes: bool
    checks: list[Check]

    @property
    def why(self) -> str:
        """What decided, in a line: all that fails, or else the first check."""
        failed = [check.told for check in self.checks if check.passes is False]
        return "; ".join(failed) if not self.passes else self.checks[0].told


def verdict(
    rule: GateRule,
    differences: Sequence[Difference],
    challenger: MetricRows,
    champion: MetricRows | None,
) -> Verdict:
    """differences: challenger minus champion, paired, on the same images.

    champion: None where no bundle has the alias: the challenger passes, its calibration is said.
    """
    calibration = _calibration(rule, challenger)
    if champion is None:
        first = Check("first", True, "first bundle of the alias: there is none to be compared with")
        return Verdict(True, [first, calibration])
    checks = [
        _bound(rule, differences, challenger, champion),
        *_probe(rule, differences, challenger, champion),
        _auroc(rule, differences, challenger, champion),
        calibration,
        _active_units(rule, challenger, champion),
    ]
    return Verdict(all(check.passes is not False for check in checks), checks)


def _bound(
    rule: GateRule, differences: Sequence[Difference], challenger: MetricRows, champion: MetricRows
) -> Check:
    has_bound = {bool(_values(rows, "neg_elbo")) for rows in (challenger, champion)}
    if len(has_bound) == 2:
        text = "one of the two has a prior, the other has none: what they reach is not the same"
        return Check("bound", False, f"the bound cannot be compared: {text} quantity")
    metric, what = (
        ("neg_elbo", "bound") if has_bound == {True} else ("recon_nll", "reconstruction likelihood")
    )
    found = _difference(differences, metric, None)
    ends = _ends(found)
    if found is None or ends is None or not found.comparable:
        why = found.note if found is not None and found.note else "its paired difference is missing"
        return Check("bound", False, f"the {what} cannot be compared: {why}")
    if found.images < rule.least_images:
        return Check("bound", False, f"the {what} cannot be compared: {_few(found.images, rule)}")
    low, middle, high = ends
    # neg_elbo and recon_nll count down: the gain is minus the difference, its lower end minus the
    # upper one.
    passes = -high > rule.gain_nats
    interval = _interval(-high, -low, found.images)
    is_above = "is above" if passes else "is not above"
    text = f"the {what} gains {-middle:.4g} nats an image ({interval}), whose lower end {is_above}"
    return Check("bound", passes, f"{text} {rule.gain_nats:g}")


def _probe(
    rule: GateRule, differences: Sequence[Difference], challenger: MetricRows, champion: MetricRows
) -> list[Check]:
    name = "probe_accuracy"
    theirs, ours = _values(challenger, name), _values(champion, name)
    labels = sorted({*theirs, *ours}, key=str)
    if not labels:
        why = _note(challenger, name) or "no label"
        return [Check(name, None, f"the probe was not checked: {why}")]
    checks = []
    for label in labels:
        what = f"the probe's accuracy on {label}"
        found = _difference(differences, name, label)
        if label not in theirs or label not in ours:
            checks.append(_one_sided(name, what, label in theirs))
        else:
            checks.append(_no_loss(rule, name, what, _ends(found), found))
    return checks


def _auroc(
    rule: GateRule, differences: Sequence[Difference], challenger: MetricRows, champion: MetricRows
) -> Check:
    name = "auroc"
    scores = [_decision_score(rows) for rows in (challenger, champion)]
    values = [_values(r, name).get(s) for r, s in zip((challenger, champion), scores, strict=True)]
    if values == [None, None]:
        why = _note(challenger, name) or "no image is known to be an anomaly"
        return Check(name, None, f"AUROC was not checked: {why}")
    if None in values:
        return _one_sided(name, "AUROC of the decision score", values[1] is None)
    rarer = min((d.rarer for d in differences if d.rarer is not None), default=None)
    if rarer is not None and rarer < rule.least_anomalies:
        reason = f"{rarer} of the rarer kind (anomalous or normal) are too few to tell, at least"
        reason = f"AUROC cannot be compared: {reason} {rule.least_anomalies} are required"
        return Check(name, False, reason)
    if scores[0] == scores[1]:
        found = _difference(differences, name, scores[0])
        what = f"AUROC of {scores[0]}"
        return _no_loss(rule, name, what, _ends(found), found)
    # Two scores have no paired interval here; that of each alone gives one that is wider than it.
    mine, theirs = (_row(r, name, s) for r, s in zip((challenger, champion), scores, strict=True))
    ends = None
    if all(_is_number(row[end]) for row in (mine, theirs) for end in ("low", "high")):
        middle = mine["value"] - theirs["value"]
        ends = (mine["low"] - theirs["high"], middle, mine["high"] - theirs["low"])
    what = f"AUROC of {scores[0]}, against {scores[1]} of the champion,"
    fewer = min(mine["images"] or 0, theirs["images"] or 0)
    return _no_loss(rule, name, what, ends, None, fewer)


def _no_loss(
    rule: GateRule,
    name: str,
    what: str,
    ends: tuple[float, float, float] | None,
    found: Difference | None,
    images: int = 0,
) -> Check:
    """Check that a measure, of which higher is better, does not lose too much.

    ends: lower end, middle and upper end of the difference. images: that it stands on, where
    `found` does not tell.
    """
    if ends is None:
        why = found.note if found is not None and found.note else "its difference is missing"
        return Check(name, False, f"{what} cannot be compared: {why}")
    images = found.images if found is not None else images
    if images < rule.least_images:
        return Check(name, False, f"{what} cannot be compared: {_few(images, rule)}")
    low, middle, high = ends
    margin = {"probe_accuracy": rule.probe_loss, "auroc": rule.auroc_loss}[name]
    interval = _interval(low, high, images)
    reason = f"{what} changes by {middle:+.3g} ({interval})"
    if low >= -margin:
        return Check(name, True, f"{reason}: a loss above {margin:g} is ruled out")
    if middle >= -margin:
        return Check(
            name,
            False,
            f"{reason}: a loss above {margin:g} cannot be ruled out, more images would tell",
        )
    return Check(name, False, f"{reason}: more than {margin:g} is lost")


def _one_sided(name: str, what: str, is_challengers: bool) -> Check:
    missing = "champion" if is_challengers else "challenger"
    reason = f"{what} is not known of the {missing}: evaluate both on the same images and columns"
    return Check(name, False, reason)


def _calibration(rule: GateRule, challenger: MetricRows) -> Check:
    name = "calibration"
    values = _values(challenger, "calibration_p")
    if not values:
        why = _note(challenger, "calibration_p") or "the bundle has not been evaluated"
        return Check(name, False, f"nothing is known of its calibration: {why}")
    score, p_value = next(iter(values.items()))
    images = _row(challenger, "calibration_p", score)["images"] or 0
    if images < rule.least_images:
        reason = f"whether its p-values of {score} are valid is not known: {_few(images, rule)}"
        return Check(name, False, reason)
    passes = p_value >= rule.calibration_p
    are_valid = "are valid" if passes else "are not valid"
    reason = f"its p-values of {score} {are_valid} on the test split (p = {p_value:.2g}"
    return Check(name, passes, f"{reason}, at least {rule.calibration_p:g} is required)")


def _active_units(rule: GateRule, challenger: MetricRows, champion: MetricRows) -> Check:
    name = "active_units"
    theirs, ours = (_values(rows, name).get(None) for rows in (challenger, champion))
    if ours is None:
        why = _note(champion, name) or "the champion's are not known"
        return Check(name, None, f"active latents were not checked: {why}")
    if theirs is None:
        why = _note(challenger, name) or "evaluate it"
        return Check(name, False, f"its active latents are not known: {why}")
    least = rule.active_share * ours
    reason = f"{theirs:g} of its latents are active, of the champion's {ours:g}"
    return Check(name, theirs >= least, f"{reason}; at least {least:g} are required")


def _decision_score(rows: MetricRows) -> str | None:
    """Return what p-values come from: its calibration is evaluated under its name."""
    return next((row["of"] for row in rows if row["metric"] == "calibration_p"), None)


def _values(rows: MetricRows, metric: str) -> dict[str | None, float]:
    """By `of`: what could be had."""
    return {
        row["of"]: row["value"]
        for row in rows
        if row["metric"] == metric and _is_number(row["value"])
    }


def _row(rows: MetricRows, metric: str, of: str | None) -> dict[str, Any]:
    return next(row for row in rows if (row["metric"], row["of"]) == (metric, of))


def _note(rows: MetricRows, metric: str) -> str | None:
    return next((row["note"] for row in rows if row["metric"] == metric and row["note"]), None)


def _difference(
    differences: Sequence[Difference], metric: str, of: str | None
) -> Difference | None:
    return next((each for each in differences if (each.metric, each.of) == (metric, of)), None)


def _ends(found: Difference | None) -> tuple[float, float, float] | None:
    """Lower end, middle and upper end; None unless all are numbers."""
    if found is None:
        return None
    low, middle, high = found.low, found.difference, found.high
    if low is None or middle is None or high is None:
        return None
    return (low, middle, high) if all(map(math.isfinite, (low, middle, high))) else None


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _few(images: int, rule: GateRule) -> str:
    are = "image is" if images == 1 else "images are"
    return f"{images} {are} too few to tell, at least {rule.least_images} are required"


def _interval(low: float, high: float, images: int) -> str:
    return f"{CONFIDENCE:.0%} interval {low:.4g} to {high:.4g} on {images:,} images"

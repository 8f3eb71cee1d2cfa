"""The headline of a night, by rule: what happened, whether it is good, what to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jobs.report.blocks import counted, p_text, percent
from jobs.report.night import ReportNight

GOOD, LOOK, ALARM, QUIET = "good", "look", "alarm", "quiet"
WORDS = {
    GOOD: "Nothing stands out",
    LOOK: "Worth a look",
    ALARM: "Needs attention",
    QUIET: "Nothing new",
}


@dataclasses.dataclass(frozen=True)
class Headline:
    """status: of WORDS. Three sentences each of which stands for itself."""

    status: str
    happened: str
    is_good: str
    look_at: str

    @property
    def word(self) -> str:
        """Return the one word that stands first."""
        return WORDS[self.status]

    @property
    def sentences(self) -> list[str]:
        """Return the sentences below it."""
        return [self.happened, self.is_good, self.look_at]

    def __str__(self) -> str:
        return f"{self.word}. {' '.join(self.sentences)}"


def headline_of(night: ReportNight) -> Headline:
    """Sum a night up in a headline."""
    return Headline(_status(night), _happened(night), _is_good(night), _look_at(night))


def unknown_headline(why: str) -> Headline:
    """Where the tables could not be read."""
    return Headline(
        LOOK,
        f"What happened could not be read: {_ended(why)}",
        "Whether the p-values are valid is not known.",
        "Make this report again.",
    )


def _status(night: ReportNight) -> str:
    if night.drifted or not night.calibration_is_valid or _refused_many(night):
        return ALARM
    unknown = bool(night.batches) and night.drifted is None
    if unknown or night.flagged or night.counts("stage")["refused"]:
        return LOOK
    if _challenge(night)[0] == "refused":
        return LOOK
    return GOOD if night.runs and _arrived(night) else QUIET


def _refused_many(night: ReportNight) -> bool:
    counts = night.counts("stage")
    return counts["refused"] * 20 > counts["rows_in"] > 0


def _arrived(night: ReportNight) -> float:
    return night.counts("stage")["staged"] + night.counts("embed")["embedded"]


def _happened(night: ReportNight) -> str:
    if not night.runs:
        return f"No job of {night.dataset} or {night.model} finished on {night.night}."
    staged, embedded = night.counts("stage"), night.counts("embed")
    parts = []
    if night.ran("stage"):
        if staged["staged"]:
            parts.append(f"{counted(int(staged['staged']), 'new image')} arrived")
        else:
            parts.append("no new image arrived")
        for name, what in (("refused", "refused"), ("duplicates", "known already")):
            if staged[name]:
                parts.append(_were(int(staged[name]), what))
        if staged["removed_images"]:
            parts.append(f"{int(staged['removed_images']):,} left with their source")
    else:
        parts.append("nothing was staged")
    if embedded["embedded"]:
        older = ", earlier ones among them" if embedded["embedded"] > staged["staged"] else ""
        parts.append(f"{_were(int(embedded['embedded']), 'embedded')}{older}")
    sentence = _listed(parts)
    return f"{sentence[0].upper()}{sentence[1:]}.{_of_the_model(night)}"


def _were(count: int, what: str) -> str:
    return f"{count:,} {'was' if count == 1 else 'were'} {what}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _of_the_model(night: ReportNight) -> str:
    """Return what became of the model, where something did."""
    fate, version, why = _challenge(night)
    name = f"{night.model}@{version}"
    match fate:
        case "promoted":
            return f" {name} became {night.alias}: {_ended(why)}"
        case "refused":
            sentence = f"{name} was compared with the {night.alias} and refused: "
            return f" {'' if name in why else sentence}{_ended(why)}"
        case "other":
            return f" {_ended(why)}"
        case "trained":
            return f" {name} was trained, and is not the {night.alias}."
    return ""


def _ended(why: str) -> str:
    return why if why.endswith(".") else f"{why}."


def _challenge(night: ReportNight) -> tuple[str, str, str]:
    """Return what became of the night's challenger, its version, and why; empty where there was
    none."""
    moved = [row for row in night.moves if row["night"] == night.night]
    if moved:
        return "promoted", moved[-1]["version"], moved[-1]["reason"] or "no reason was given"
    for run in reversed(night.runs):
        counts = run["counts"]
        version = str(counts.get("version", ""))
        if run["job"] == "promote":
            why = str(counts.get("why") or "no reason was given")
            if not counts.get("promoted"):
                return "refused", version, why
            alias = counts.get("alias") or "an alias"
            return "other", version, f"{night.model}@{version} was given the alias {alias}: {why}"
        if run["job"] == "train":
            return "trained", version, ""
    return "", "", ""


def _is_good(night: ReportNight) -> str:
    if night.version is None:
        return night.no_model
    combined = night.verdict
    if night.drifted and combined is not None and night.was_judged_before:
        before = f"{night.model}@{combined['model_version']}"
        return (
            f"The night's images differ from those of {before}, the {night.alias} before "
            f"({p_text(combined['p_value'])}); {night.name} was trained with them."
        )
    if night.drifted and combined is not None:
        return (
            f"The night's images differ from those that {night.name} was calibrated on "
            f"({p_text(combined['p_value'])}): its p-values are not valid tonight."
        )
    if not night.calibration_is_valid:
        return f"The p-values are not valid: {night.why_not_valid}."
    if combined is None:
        return "Drift was not tested, so whether the p-values are valid is not known."
    if combined["drifted"] is None:
        why = combined["note"] or "no reason was given"
        return f"Drift could not be tested ({why.rstrip('.')}): take the p-values with care."
    return (
        f"No drift was found ({p_text(combined['p_value'])}): nothing speaks against the p-values."
    )


def _look_at(night: ReportNight) -> str:
    tested = sum(row["tested"] for row in night.batches)
    if night.version is None:
        return "There are no scores to look at yet: look at the images and at what was refused."
    if not night.batches:
        return "No image was scored on this night: there are no anomalies to look at."
    if not night.flagged:
        return (
            f"None of {counted(tested, 'scored image')} was flagged as an anomaly{_too_few(night)}."
        )
    alpha = max(row["alpha"] for row in night.batches)
    what = "image" if night.flagged == 1 else "images"
    rate = f", at a false-discovery rate of {percent(alpha)}"
    doubt = "; their p-values are not valid, so no rate of false alarms is kept"
    return (
        f"Look at the {night.flagged:,} {what} flagged as anomalies among {tested:,} scored"
        f"{rate if night.calibration_is_valid else doubt}."
    )


def _too_few(night: ReportNight) -> str:
    fewest = max(row["fewest_flaggable"] for row in night.batches)
    if fewest <= 1:
        return ""
    return f"; fewer than {fewest:,} can never be, with a calibration of this size"

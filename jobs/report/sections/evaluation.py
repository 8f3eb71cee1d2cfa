"""How the night and the model were judged: the drift panel and the evaluation table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.bundles.manifest import config_of
from jobs.evaluate.compare import Difference
from jobs.evaluate.results import is_by_measure, measure_of
from jobs.report.blocks import (
    NONE,
    Block,
    Chart,
    FoldedRows,
    Missing,
    Rows,
    Say,
    Section,
    number,
    percent,
)
from jobs.report.figures import bars_figure
from jobs.report.night import ReportNight, Row
from jobs.report.sections.drift import _target, _yes

METRICS = {
    "log_likelihood": "log-likelihood",
    "neg_elbo": "−ELBO",
    "recon_nll": "reconstruction",
    "kl": "KL",
    "bits_per_dim": "bits per dimension",
    "recon_mse": "squared error",
    "inference_gap": "inference gap",
    "active_units": "active latent dimensions",
    "aggregate_posterior_kl": "aggregate posterior from prior (KL)",
    "probe_accuracy": "linear probe, accuracy",
    "probe_accuracy_pca": "the same probe on PCA",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "nearest_train_heldout": "nearest training image: of held-out images",
    "nearest_train_samples": "nearest training image: of samples",
    "memorisation": "memorisation",
    "calibration_p": "calibration on the test split: p-value",
    "calibration_share": "share of test images with p ≤ 0.05",
}
PER_DIMENSION = "kl_dimension"


def evaluation_section(night: ReportNight) -> Section:
    """Return the bundle's numbers beside those of the champion before it. Raises Missing."""
    rows = night.evaluated(night.version) if night.name else []
    if not rows:
        raise Missing(
            f"{night.name} was not evaluated on {night.dataset} yet: latentlake evaluate "
            f"{_target(night)}."
        )
    before = {_key(row): row for row in night.evaluated(night.previous)}
    version = rows[0]["images_version"]
    other = next((r["images_version"] for r in before.values()), version)
    confidence = next((r["confidence"] for r in rows if r["confidence"]), None)
    interval = f", with intervals of {percent(confidence)}" if confidence else ""
    columns = ["number", night.name]
    if before:
        where = "" if other == version else f", on version {other}"
        how = "difference, in pairs" if night.pairs else "compared"
        columns += [f"{night.alias} before: {night.previous}{where}", how]
    columns += ["unit", "images", "note"]
    measures = _measures(night)
    parts = [
        _line(row, before.get(_key(row)), bool(before), len(measures) < 2, night.pairs)
        for row in sorted(rows, key=_order)
        if row["metric"] != PER_DIMENSION
    ]
    caption = f"On the test split of {night.dataset}, version {version}{interval}"
    blocks: list[Block] = [Rows(caption, columns, parts)]
    blocks.append(Say(_compared_with(night, bool(before), other == version, measures)))
    blocks += _gate(night)
    blocks += _per_dimension(rows)
    return Section("evaluation", "Evaluation", blocks)


def _gate(night: ReportNight) -> list[Block]:
    """Return what the night's challenger had to show, by `latentlake promote`."""
    found: list[Block] = []
    for run in night.runs:
        checks = run["counts"].get("checks") if run["job"] == "promote" else None
        if checks:
            rows_shown = [(c["name"], _passed(c["passes"]), c["told"]) for c in checks]
            caption = f"The gate: what {night.model}@{run['counts']['version']} had to show"
            found.append(Rows(caption, ("check", "passed", "why"), rows_shown))
    return found


def _passed(value: bool | None) -> str:
    return "not required" if value is None else _yes(value)


def _measures(night: ReportNight) -> list[str]:
    """Return what the likelihoods of both champions are of: two where they do not compare."""
    both = (night.version, night.previous)
    configs = [
        config_of(night.lake, night.model, version, about)
        for version, about in night.versions.items()
        if version in both
    ]
    return sorted({measure_of(config.likelihood) for config in configs})


IN_PAIRS = (
    "Differences are of pairs of the same images, each with an interval of 95%; better and worse "
    "are said where it leaves out 0."
)
SIDE_BY_SIDE = (
    "Better and worse are said only where the two intervals do not meet; pairs of the same images "
    "tell smaller differences apart (latentlake compare)."
)


def _compared_with(
    night: ReportNight, is_there: bool, same_images: bool, measures: Sequence[str]
) -> str:
    if night.previous is None:
        return f"There was no {night.alias} before this one to compare with."
    if not is_there:
        return f"The {night.alias} before, {night.previous}, was not evaluated on this dataset."
    if not same_images:
        return "Better and worse are not said: the two were evaluated on different versions."
    explanation = IN_PAIRS if night.pairs else SIDE_BY_SIDE
    if len(measures) < 2:
        return explanation
    return f"{explanation} Likelihoods are not compared: one is of {' and one of '.join(measures)}."


def _key(row: Row) -> tuple[str, str | None]:
    return row["metric"], row["of"]


def _order(row: Row) -> tuple[int, str, str]:
    known = list(METRICS)
    place = known.index(row["metric"]) if row["metric"] in known else len(known)
    return place, row["metric"], row["of"] or ""


def _line(
    row: Row,
    before: Row | None,
    has_before: bool,
    same_measure: bool,
    pairs: Mapping[tuple[str, str | None], Difference],
) -> list[str]:
    of = f" ({row['of']})" if row["of"] else ""
    cells = [f"{METRICS.get(row['metric'], row['metric'])}{of}", _value(row)]
    if has_before:
        cells += [_value(before) if before else NONE]
        compares = same_measure or not is_by_measure(row["metric"])
        pair = pairs.get(_key(row))
        change = _paired(pair) if pair is not None else _difference(row, before)
        cells.append(change if compares else "")
    unit = "" if row["unit"] in (None, "1") else row["unit"]
    return [*cells, unit, number(row["images"]), row["note"] or ""]


def _value(row: Row) -> str:
    if row["value"] is None:
        return NONE
    ends = ""
    if row["low"] is not None and row["high"] is not None:
        ends = f" [{number(row['low'])} to {number(row['high'])}]"
    return f"{number(row['value'])}{ends}"


def _paired(pair: Difference) -> str:
    if pair.difference is None:
        return ""
    change = f"{number(pair.difference)}"
    if pair.low is None or pair.high is None:
        return change
    change += f" [{number(pair.low)} to {number(pair.high)}]"
    if pair.note or pair.better not in ("higher", "lower") or pair.low <= 0.0 <= pair.high:
        return change
    return f"{change}, {'better' if (pair.low > 0.0) == (pair.better == 'higher') else 'worse'}"


def _difference(row: Row, before: Row | None) -> str:
    if before is None or row["better"] not in ("higher", "lower"):
        return ""
    if row["images_version"] != before["images_version"]:
        return ""
    ends = [each[end] for each in (row, before) for end in ("low", "high")]
    if any(end is None for end in ends):
        return ""
    low, high, low_before, high_before = ends
    if low <= high_before and low_before <= high:
        return "intervals meet"
    is_higher = low > high_before
    return "better" if is_higher == (row["better"] == "higher") else "worse"


def _per_dimension(rows: Sequence[Row]) -> list[Block]:
    known = [row for row in rows if row["metric"] == PER_DIMENSION and row["value"] is not None]
    if not known:
        return []
    known = sorted(known, key=lambda row: -row["value"])
    names, values = [str(row["of"]) for row in known], [row["value"] for row in known]
    sentence = (
        f"Mean KL of each of {len(known)} latent dimensions on the test split, largest first; a "
        "dimension near 0 says nothing of the image."
    )
    chart = bars_figure("latent dimension", "KL, nats", names, values)
    table = [(name, number(value)) for name, value in zip(names, values, strict=True)]
    return [
        Chart("dimensions", "KL by latent dimension", sentence, chart),
        FoldedRows("The same as a table", Rows("KL by dimension", ("dimension", "nats"), table)),
    ]

"""What a report tells of the model: how it was trained, and what it makes of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.report.blocks import (
    Block,
    Chart,
    FoldedRows,
    Missing,
    Rows,
    Say,
    Section,
    counted,
    number,
)
from jobs.report.figures import Line, lines_figure, plane_figure
from jobs.report.night import ReportNight, Row

if TYPE_CHECKING:
    pass

VERSIONS = 4  # of the model beside each other


def training_section(night: ReportNight) -> Section:
    """Loss by epoch in nats, of training and validation. Raises Missing."""
    about = night.about
    history = about["history"]
    xs = [row["epoch"] for row in history]
    lines = [Line("train", xs, [row["train_nats"] for row in history])]
    lines.append(Line("validation", xs, [row["validation_nats"] for row in history]))
    best = about["metrics"]
    has_kl = best["validation_kl_nats"] is not None
    what = "−ELBO" if has_kl else "reconstruction error"
    sentence = (
        f"{night.name}: {what} over {counted(len(history), 'epoch')}, in nats an image; lower is "
        f"better. Training ended at {number(history[-1]['train_nats'])}, validation at "
        f"{number(history[-1]['validation_nats'])}. Published: epoch {best['epoch']}, with "
        f"{number(best['validation_nats'])} on validation (dotted line)."
    )
    chart = lines_figure("epoch", f"{what}, nats an image", lines, best["epoch"])
    blocks: list[Block] = [Chart("training", "Loss by epoch", sentence, chart), _epochs(history)]
    if about["bad_steps"]:
        blocks.append(
            Say(f"{counted(about['bad_steps'], 'step')} had no finite loss: skipped.", "bad")
        )
    return Section("training", "Training", blocks)


def _epochs(history: Sequence[Row]) -> FoldedRows:
    names = {
        "epoch": "epoch",
        "train_nats": "train",
        "train_recon_nats": "train: reconstruction",
        "train_kl_nats": "train: KL",
        "validation_nats": "validation",
        "validation_kl_nats": "validation: KL",
    }
    rows = [[number(row.get(name)) for name in names] for row in history]
    return FoldedRows("The same as a table", Rows("Nats by epoch", list(names.values()), rows))


def rate_section(night: ReportNight) -> Section:
    """KL against reconstruction on validation, of this version and those before. Raises Missing."""
    if night.about["metrics"]["validation_kl_nats"] is None:
        raise Missing(f"{night.name} has no prior: it has no rate (KL) to set against distortion.")
    paths, ends, rows = [], [], []
    others = [v for v in night.versions if v != night.version]
    unlike = 0
    for version in [night.version, *reversed(others[-VERSIONS + 1 :])]:
        about = night.versions[str(version)]
        if not _compares(about, night.about):
            unlike += 1
            continue
        path = [_rate(row) for row in about["history"]]
        end = _rate(about["metrics"])
        name = f"{version}{', this report' if version == night.version else ''}"
        paths.append(Line(name, *zip(*path, strict=True)))
        ends.append(Line(name, [end[0]], [end[1]]))
        rows.append((str(version), *map(number, end), number(sum(end))))
    sentence = (
        "Rate (KL) and distortion (reconstruction) on the validation split, in nats an image; the "
        "nearer to the lower left the better, and equal sums are equal bounds. Small points are "
        "epochs, the large one is what was published (Alemi et al. 2018, Fixing a broken ELBO)."
    )
    chart = plane_figure("rate: KL, nats", "distortion: reconstruction, nats", paths, ends)
    columns = ("version", "rate", "distortion", "−ELBO")
    blocks: list[Block] = [
        Chart("rate", "By version and epoch", sentence, chart),
        Rows("Published bundles on their validation splits, nats an image", columns, rows),
    ]
    if unlike:
        versions = counted(unlike, "earlier version")
        blocks.append(Say(f"{versions} of another likelihood or image size cannot be compared."))
    if len(rows) == 1 and not unlike:
        blocks.append(Say("There is no earlier version to compare with."))
    return Section("rate", "Rate and distortion", blocks)


def _compares(about: Row, other: Row) -> bool:
    """Whether nats of the two mean the same."""
    ours, theirs = about["config"], other["config"]
    same = all(ours[key] == theirs[key] for key in ("likelihood", "image_shape"))
    return same and about["metrics"]["validation_kl_nats"] is not None


def _rate(row: Row) -> tuple[float, float]:
    kl = row["validation_kl_nats"]
    return kl, row["validation_nats"] - kl

"""What a report tells of the model: how it was trained, and what it makes of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.report_blocks import (
    Block,
    Chart,
    FoldedRows,
    Limits,
    Missing,
    Pictures,
    Rows,
    Say,
    Section,
    counted,
    number,
)
from jobs.report_figures import Line, lines_figure, plane_figure
from jobs.report_images import cell, heat, strip
from jobs.report_night import Night, Row

if TYPE_CHECKING:
    import numpy as np

    from jobs.report_pictures import Compared, Paintings

USUAL = 12  # originals beside their reconstructions
REFERENCES = 64  # images that the traversals' order stands on
FLAGGED = 12
VERSIONS = 4  # of the model beside each other


def training_section(night: Night) -> Section:
    """Loss by epoch in nats, of training and validation. Raises Missing."""
    about = night.about
    history = about["history"]
    xs = [row["epoch"] for row in history]
    lines = [Line("train", xs, [row["train_nats"] for row in history])]
    lines.append(Line("validation", xs, [row["validation_nats"] for row in history]))
    best = about["metrics"]
    has_kl = best["validation_kl_nats"] is not None
    what = "−ELBO" if has_kl else "reconstruction error"
    told = (
        f"{night.name}: {what} over {counted(len(history), 'epoch')}, in nats an image; lower is "
        f"better. Training ended at {number(history[-1]['train_nats'])}, validation at "
        f"{number(history[-1]['validation_nats'])}. Published: epoch {best['epoch']}, with "
        f"{number(best['validation_nats'])} on validation (dotted line)."
    )
    chart = lines_figure("epoch", f"{what}, nats an image", lines, best["epoch"])
    blocks: list[Block] = [Chart("training", "Loss by epoch", told, chart), _epochs(history)]
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


def rate_section(night: Night) -> Section:
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
    told = (
        "Rate (KL) and distortion (reconstruction) on the validation split, in nats an image; the "
        "nearer to the lower left the better, and equal sums are equal bounds. Small points are "
        "epochs, the large one is what was published (Alemi et al. 2018, Fixing a broken ELBO)."
    )
    chart = plane_figure("rate: KL, nats", "distortion: reconstruction, nats", paths, ends)
    columns = ("version", "rate", "distortion", "−ELBO")
    blocks: list[Block] = [
        Chart("rate", "By version and epoch", told, chart),
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


def paintings_of(night: Night) -> Paintings:
    """What the model makes of test images and of the night's anomalies. Raises Missing."""
    from jobs.report_pictures import image_shape, paint  # brings torch

    usual = _test_images(night)
    if not usual:
        raise Missing(f"{night.dataset} has no image that a reconstruction could be shown of.")
    flagged = [row["image_id"] for row in night.anomalies(FLAGGED)]
    worst = night.images(flagged)
    assert night.version is not None
    wanted = image_shape(night.lake, night.model, night.version)
    found = next(iter(usual.values())).shape
    if found != wanted:
        raise Missing(
            f"{night.name} takes images of {_size(wanted)}, those of {night.dataset} are "
            f"{_size(found)}: it can make nothing of them."
        )
    return paint(night.lake, night.model, night.version, usual, worst)


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _test_images(night: Night) -> dict[str, np.ndarray]:
    """Of the test split; where it is empty, of what there is."""
    _ = night.name
    rows = night.ask(
        """SELECT image_id FROM images WHERE dataset = ? AND night <= ?
           ORDER BY split <> 'test', image_id LIMIT ?""",
        night.dataset,
        night.night,
        REFERENCES,
    )
    return night.images([row["image_id"] for row in rows])


def reconstructions_section(night: Night, paintings: Paintings, limits: Limits) -> Section:
    """Originals, reconstructions and error maps side by side."""
    count = limits.of(USUAL)
    pictures = [
        strip(
            [image, made, heat(error, paintings.top)],
            f"Image {image_id[:12]}: original, reconstruction, error map; mean squared error "
            f"{number(float(error.mean()), 2)}",
            f"{image_id[:12]} · error {number(float(error.mean()), 2)}",
        )
        for image_id, image, made, error in list(_each(paintings.usual))[:count]
    ]
    caption = (
        f"{_whose(night)}: original, reconstruction, squared error. Black is no error, the "
        f"brightest is {number(paintings.top, 2)} and more, of intensities from 0 to 1; here and "
        "below."
    )
    return Section("reconstructions", "Reconstructions", [Pictures(caption, pictures)])


def _whose(night: Night) -> str:
    held = "SELECT count(*) AS n FROM images WHERE dataset = ? AND night <= ? AND split = 'test'"
    (row,) = night.ask(held, night.dataset, night.night)
    return "Test images" if row["n"] else "The test split is empty. Images of the other splits"


def _each(compared: Compared) -> Any:
    return zip(
        compared.ids,
        compared.images,
        compared.reconstructions,
        compared.errors_NHW,
        strict=True,
    )


def samples_section(paintings: Paintings, limits: Limits) -> Section:
    """Samples, interpolations and latent traversals."""
    shown = paintings.samples[: limits.of(len(paintings.samples))]
    samples = [cell(image, f"Sample {n}", side=56) for n, image in enumerate(shown, 1)]
    prior = "the prior" if paintings.has_prior else "a Gaussian fitted to the codes"
    way = "arc" if paintings.has_prior else "straight line"
    paths = [
        strip(frames, f"Interpolation {n}: {len(frames)} steps from one image to another")
        for n, frames in enumerate(paintings.paths[: limits.of(len(paintings.paths))], 1)
    ]
    walks = [
        strip(t.frames, f"Latent dimension {t.dimension} from low to high", _told_of(t))
        for t in paintings.traversals[: limits.of(len(paintings.traversals))]
    ]
    order = "the largest KL" if paintings.has_prior else "the largest variance"
    blocks: list[Block] = [Pictures(f"Samples from {prior}", samples, "sheet")]
    if paths:
        blocks.append(Pictures(f"Between two images, along the {way}", paths, "rows"))
    blocks.append(
        Pictures(
            f"Latent traversals: one dimension from −3 to +3 standard deviations, the others held; "
            f"the dimensions with {order} come first",
            walks,
            "rows",
        )
    )
    return Section("samples", "Samples", blocks)


def _told_of(traversal: Any) -> str:
    kl = f" · KL {number(traversal.kl, 2)} nats" if traversal.kl is not None else ""
    return f"dimension {traversal.dimension}{kl}"

"""What the model makes of images, and images that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.report.blocks import Block, Limits, Missing, Pictures, Section, number
from jobs.report.data_uris import cell, heat, strip
from jobs.report.night import ReportNight

if TYPE_CHECKING:
    import numpy as np

    from jobs.report.model_pictures import Compared, Paintings


USUAL = 12  # originals beside their reconstructions


REFERENCES = 64  # images that the traversals' order stands on


FLAGGED = 12


def paintings_of(night: ReportNight) -> Paintings:
    """Return what the model makes of test images and of the night's anomalies. Raises Missing."""
    from jobs.report.model_pictures import image_shape, paint  # brings torch

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


def _test_images(night: ReportNight) -> dict[str, np.ndarray]:
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


def reconstructions_section(night: ReportNight, paintings: Paintings, limits: Limits) -> Section:
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


def _whose(night: ReportNight) -> str:
    count = "SELECT count(*) AS n FROM images WHERE dataset = ? AND night <= ? AND split = 'test'"
    (row,) = night.ask(count, night.dataset, night.night)
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
    """Show samples, interpolations and latent traversals."""
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
            f"Latent traversals: one dimension from −3 to +3 standard deviations, others fixed; "
            f"the dimensions with {order} come first",
            walks,
            "rows",
        )
    )
    return Section("samples", "Samples", blocks)


def _told_of(traversal: Any) -> str:
    kl = f" · KL {number(traversal.kl, 2)} nats" if traversal.kl is not None else ""
    return f"dimension {traversal.dimension}{kl}"

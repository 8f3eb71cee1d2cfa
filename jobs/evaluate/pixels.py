"""What evaluate does with pixels again, once all is encoded: PCA, and nearest training images."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import torch

from jobs.bundles import bundle as bundles
from jobs.datasets.split_sample import read_pieces, sample_of
from jobs.datasets.splits import pixels_of
from jobs.evaluate.probe import Labels, probe_right
from jobs.tables.delta import Snapshot
from vae_core.stats.memorisation import copying, nearest_distance
from vae_core.stats.pca import PrincipalAxes

PIXEL_BYTES = 1 << 27  # of a split's images in memory at once
HELD_AGAINST = 2000  # test images at most, and samples, whose nearest images are looked up
SAMPLED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class PixelRows:
    """The first images of some parts, by id, as vectors in [0, 1], (n, P) float32."""

    x_NP: torch.Tensor

    def __len__(self) -> int:
        return len(self.x_NP)

    @classmethod
    def read(
        cls, images: Snapshot, parts: pa.Table, image_shape: tuple[int, int, int]
    ) -> PixelRows:
        """parts: sorted by id. As many of them as PIXEL_BYTES have room for."""
        count = min(len(parts), _room(image_shape))
        wanted = parts.select(["image_id", "shard", "row"]).slice(0, count)
        places = {image_id: n for n, image_id in enumerate(wanted["image_id"].to_pylist())}
        pixels = np.zeros((count, int(np.prod(image_shape))), np.uint8)
        by_shard: dict[str, list[int]] = {}
        for shard, row in zip(wanted["shard"].to_pylist(), wanted["row"].to_pylist(), strict=True):
            by_shard.setdefault(shard, []).append(row)
        pieces = [(shard, sorted(rows)) for shard, rows in sorted(by_shard.items())]
        schema = pa.schema([images.schema.field(name) for name in ("image_id", "image")])
        for rows in read_pieces(images.uri, pieces, schema):
            at = [places[image_id] for image_id in rows["image_id"].to_pylist()]
            pixels[at] = pixels_of(rows["image"], image_shape).reshape(len(at), -1)
        return cls(torch.from_numpy(pixels).float().div_(255.0))

    @classmethod
    def of_split(
        cls, images: Snapshot, split: str, most: int, image_shape: tuple[int, int, int]
    ) -> PixelRows:
        """Return the first images of a split, at most `most` of them, and as many as there is room
        for."""
        pieces = sample_of(images, split, min(most, _room(image_shape))).pieces
        ids = pa.schema([images.schema.field("image_id")])
        rows = list(read_pieces(images.uri, pieces, ids))
        if not rows:
            return cls(torch.zeros(0, int(np.prod(image_shape))))
        return cls.read(images, pa.concat_tables(rows).sort_by("image_id"), image_shape)


def _room(image_shape: tuple[int, int, int]) -> int:
    return max(50, PIXEL_BYTES // int(np.prod(image_shape)))


def pca_right(
    train: PixelRows, train_labels: Labels, test: PixelRows, test_labels: Labels, dim: int
) -> np.ndarray:
    """As `probe_right`, of PCA coordinates of the same pixels; NaN beyond those that there are."""
    if all(label is None for label in train_labels[: len(train)]):
        return np.full(len(test_labels), np.nan)
    axes = PrincipalAxes.fit(train.x_NP, min(dim, *train.x_NP.shape))
    found = np.full(len(test_labels), np.nan)
    found[: len(test)] = probe_right(
        axes.project(train.x_NP).numpy(),
        train_labels[: len(train)],
        axes.project(test.x_NP).numpy(),
        test_labels[: len(test)],
    )
    return found


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training image, of test images and of samples of the model.

    z: of copying, see vae_core.stats.memorisation; NaN without held-out images.
    """

    heldout_M: np.ndarray
    samples_S: np.ndarray
    z: float


def nearest_to_training(
    bundle: bundles.Bundle, train: PixelRows, heldout: PixelRows, seed: int
) -> Nearest:
    """Euclidean, over pixel values in [0, 1].

    heldout: of the test split of the very snapshot that the model was trained on. Images from
    elsewhere, or of a later night, would differ from training images by what they show: a sound
    model would look like a copier. None where there are none.
    """
    model, generator = bundle.network(), torch.Generator().manual_seed(seed)
    drawn = []
    with torch.no_grad():
        for _ in range(math.ceil(HELD_AGAINST / SAMPLED_AT_ONCE)):
            shown = model.sample(SAMPLED_AT_ONCE, generator, bundle.moments)
            # Staged pixels have their values one after the other.
            drawn.append(shown.permute(0, 2, 3, 1).flatten(1))
        samples_SP = torch.cat(drawn)[:HELD_AGAINST]
        if not len(heldout):
            to_train_S = nearest_distance(samples_SP, train.x_NP).double().numpy()
            return Nearest(np.zeros(0), to_train_S, math.nan)
        found = copying(samples_SP, train.x_NP, heldout.x_NP)
        heldout_M = nearest_distance(heldout.x_NP, train.x_NP).double().numpy()
    return Nearest(heldout_M, found.distances_S, found.z)

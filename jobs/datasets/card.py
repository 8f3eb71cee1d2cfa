"""Dataset cards: what a snapshot of images holds, in numbers and in one picture.

Derived from the tables, written beside them with each snapshot, and written again where missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.datasets.image_shards import STATISTICS, ImageStatistics, counted
from jobs.datasets.splits import pixels_of
from jobs.imaging.contact_sheet import Row, contact_sheet
from jobs.lake.documents import parsed, reading, unreadable
from jobs.lake.paths import LakePaths
from jobs.lake.storage import create_or_keep, join, read_if_there
from jobs.schemas.dataset import image_shape_of
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, open_snapshot
from jobs.tables.duplicate_keys import Keys, repeats
from jobs.tables.image_ids import digests
from jobs.tables.shards import row_groups, shard_metadata

READERS = 16
ANEW = "remove it, and it is made anew"
SHEET_ROWS, SHEET_COLUMNS = 6, 12
LOOK = ("fit", "background", "exact")


def card_uri(lake: LakePaths, dataset: str, version: int, ending: str) -> str:
    """Name a card's file. ending: json or png."""
    return join(lake.dataset(dataset, "cards"), f"{version:08d}.{ending}")


def dataset_card(lake: LakePaths, dataset: str, version: int | None = None) -> dict[str, Any]:
    """Read or make the card of a snapshot, the newest published one if None.

    Raises InputError for an unknown dataset or version.
    """
    images = catalog.images_snapshot(lake, dataset, version)
    uri = card_uri(lake, dataset, images.version, "json")
    stored = read_if_there(uri)
    if stored is None:
        return write_card(lake, dataset, images)
    card = parsed(dict[str, Any], stored, uri, ANEW)
    if not {"dataset", "images_version", "images"} <= card.keys():
        raise unreadable(uri, "it is no card", ANEW)
    return card


def write_card(lake: LakePaths, dataset: str, images: Snapshot) -> dict[str, Any]:
    """Write the picture, then the numbers; what is there already stays."""
    card = {
        "dataset": dataset,
        "images_version": images.version,
        "image_shape": list(image_shape_of(images.schema)),
        **look_of(images),
        **_contents(images),
        **_near_duplicates(images),
        **_sources(lake, dataset),
    }
    if card["images"]:
        create_or_keep(card_uri(lake, dataset, images.version, "png"), _picture(dataset, images))
    body = json.dumps(card, indent=1).encode()
    create_or_keep(card_uri(lake, dataset, images.version, "json"), body)
    return card


def look_of(images: Snapshot) -> dict[str, Any]:
    """Return what staged pixels depend on beside the bytes, as the table holds it."""
    stored = images.schema.field("image").metadata or {}
    with reading(f"the schema of {images.uri}"):
        return {name: json.loads(stored[name.encode()]) for name in LOOK if name.encode() in stored}


def _contents(images: Snapshot) -> dict[str, Any]:
    """From the footers of the shards: no row is read."""
    total = ImageStatistics()
    with ThreadPoolExecutor(READERS) as pool:
        for metadata in pool.map(shard_metadata, images.file_uris()):
            with reading(f"a shard of {images.uri}"):
                total.merge(ImageStatistics.from_json(json.loads(metadata[STATISTICS])))
    files = images.files()
    return {
        "images": total.rows,
        "shards": len(files),
        "bytes": sum(file.size for file in files),
        "mean": [round(value, 4) for value in total.mean] if total.rows else [],
        "variance": [round(value, 4) for value in total.variance] if total.rows else [],
        "splits": dict(total.splits),
        "formats": dict(total.formats.most_common()),
        "modes": dict(total.modes.most_common()),
        "source_widths": total.widths,
        "source_heights": total.heights,
        "source_sizes": dict(total.sizes.most_common()),
        "labels": dict(total.labels.most_common()) if total.labels is not None else None,
    }


def _near_duplicates(images: Snapshot) -> dict[str, int]:
    """Images that share their pixels, or their perceptual hash, with an earlier one."""
    with Keys() as hashes, Keys() as pixels:
        for _, rows in images.read_each(["phash", "pixels_hash"]):
            hashes.add(rows["phash"].to_numpy())
            # 64 bits of a sha256 tell pictures apart well enough to count them.
            pixels.add(digests(rows["pixels_hash"])["high"].astype(np.uint64))
        return {
            "same_perceptual_hash": sum(len(repeats(some)) for some in hashes.partitions()),
            "same_pixels": sum(len(repeats(some)) for some in pixels.partitions()),
        }


def _sources(lake: LakePaths, dataset: str) -> dict[str, Any]:
    """Of every source row that is there now: its fate; of the refused, why."""
    versions = catalog.published_versions(lake)
    fates: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for rows in _published(lake, dataset, "sources", ["fate", "removed_night"], versions):
        live = rows.filter(pc.is_null(rows["removed_night"]))  # type: ignore[attr-defined]
        fates.update(counted(live["fate"]))
    for rows in _published(lake, dataset, "quarantine", ["reason"], versions):
        reasons.update(counted(rows["reason"]))
    return {"source_rows": dict(fates), "refused": dict(reasons.most_common())}


def _published(
    lake: LakePaths, dataset: str, table: str, columns: list[str], versions: dict[str, int]
) -> Iterator[Any]:
    uri = lake.dataset(dataset, table)
    snapshot = open_snapshot(uri, versions.get(uri.removeprefix(lake.uri + "/")))
    if snapshot is not None:
        for _, rows in snapshot.read_each(columns):
            yield rows


def _picture(dataset: str, images: Snapshot) -> bytes:
    """Draw a sheet of images from all over the snapshot, the same ones whenever it is drawn."""
    shape = image_shape_of(images.schema)
    uris = images.file_uris()
    chosen = [uris[i] for i in np.unique(np.linspace(0, len(uris) - 1, SHEET_ROWS).astype(int))]
    wanted = SHEET_ROWS * SHEET_COLUMNS
    pixels: list[np.ndarray] = []
    for number, uri in enumerate(chosen):
        share = -(-(wanted - len(pixels)) // (len(chosen) - number))
        group = next(row_groups(uri, ["image"]))
        at = np.unique(np.linspace(0, group.num_rows - 1, min(share, group.num_rows)).astype(int))
        pixels += list(pixels_of(group["image"].take(at), shape))
    rows = [
        Row("", pixels[start : start + SHEET_COLUMNS], [])
        for start in range(0, len(pixels), SHEET_COLUMNS)
    ]
    count = images.partition_rows({})
    return contact_sheet(f"{dataset}, version {images.version}: {count:,} images", rows)


def card_text(card: dict[str, Any]) -> str:
    """Write the card for people."""
    height, width, channels = card["image_shape"]
    size = f"{card['bytes'] / 2**20:,.1f} MiB in {card['shards']} shards"
    kind = f"{card['images']:,} images of {height}x{width}x{channels}"
    lines = [f"{card['dataset']}, version {card['images_version']}: {kind}, {size}"]
    lines.append(f"  staged by: {card.get('fit')}, background {card.get('background')}")
    if card["images"]:
        moments = zip(card["mean"], card["variance"], strict=True)
        lines.append("  pixels: " + ", ".join(f"{m:.1f} ± {v**0.5:.1f}" for m, v in moments))
        (w0, w1), (h0, h1) = card["source_widths"], card["source_heights"]
        lines.append(f"  came as: {w0} to {w1} wide, {h0} to {h1} high")
    for name in ("source_sizes", "formats", "modes", "splits", "labels", "source_rows", "refused"):
        if card[name]:
            title = f"{name.replace('_', ' ')}{' from' if name == 'source_sizes' else ''}"
            lines.append(f"  {title}: {_histogram(card[name])}")
    for name in ("same_pixels", "same_perceptual_hash"):
        lines.append(f"  {name.replace('_', ' ')} as another: {card[name]:,} images")
    return "\n".join(lines)


def _histogram(counts: dict[str, int], shown: int = 12) -> str:
    parts = [f"{name} {count:,}" for name, count in list(counts.items())[:shown]]
    return ", ".join(parts + ([f"… {len(counts) - shown} more"] if len(counts) > shown else []))

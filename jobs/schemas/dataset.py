"""The tables of a lake: columns, types, units and directions.

Imports neither ray nor torch, so that planning and querying start fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.lake.documents import reading
from jobs.schemas.spec import TableSpec, column, provenance

# What turns source bytes into staged pixels, as a number: it changes whenever the same bytes
# would give other pixels, and outputs of different numbers never mix. Guarded by golden pixels.
PREPROCESSING = 2
LARGEST_SIDE = 65_536  # of staged images

SPLITS = (("train", 80), ("validation", 5), ("calibration", 10), ("test", 5))


def split_of(image_id: str) -> str:
    """Return the split of an image, by its id alone, so that it never changes."""
    point = int(image_id[-8:], 16) % 100
    for split, share in SPLITS:
        if point < share:
            return split
        point -= share
    raise AssertionError("shares add up to 100")


def images_spec(
    image_shape: tuple[int, int, int],
    passthrough: pa.Schema,
    look: Mapping[str, Any] | None = None,
) -> TableSpec:
    """image_shape: H, W, C of every image of the dataset. look: what else its pixels depend on."""
    size = image_shape[0] * image_shape[1] * image_shape[2]
    columns = [
        column("image_id", pa.string(), "sha256 of the encoded source bytes", required=True),
        column(
            "image",
            pa.binary(size),
            "uint8 pixels, H·W·C",
            required=False,
            shape=json.dumps(list(image_shape)),
            preprocessing=str(PREPROCESSING),
            **{name: json.dumps(value) for name, value in (look or {}).items()},
        ),
        column("pixels_hash", pa.string(), "sha256 of the staged pixels"),
        column("source_uri", pa.string(), "where its first occurrence was read"),
        column("source_row", pa.int64(), "row of its first occurrence"),
        column("source_member", pa.string(), "its name in the archive; null elsewhere"),
        column("source_format", pa.string(), "JPEG, PNG, …; array for pixels"),
        column("source_mode", pa.string(), "colour mode as it came: L, RGB, CMYK, …"),
        column("source_width", pa.int32(), "width before resizing, in pixels"),
        column("source_height", pa.int32(), "height before resizing, in pixels"),
        column("phash", pa.int64(), "perceptual hash: near duplicates differ in few bits"),
        column("split", pa.string(), "train / validation / calibration / test, by image_id"),
        *provenance(),
        *passthrough,
    ]
    return TableSpec(
        "images",
        owner="dataset",
        schema=pa.schema(columns),
        stats=("image_id", "source_uri", "split", "night"),
    )


def image_shape_of(schema: pa.Schema) -> tuple[int, int, int]:
    """H, W, C of an images table, from its schema's metadata."""
    with reading("the schema of an images table"):
        height, width, channels = map(int, json.loads(schema.field("image").metadata[b"shape"]))
        if not all(0 < side <= LARGEST_SIDE for side in (height, width, channels)):
            raise ValueError(f"images of {height}x{width}x{channels}")
        return (height, width, channels)


RESERVED = frozenset((*images_spec((1, 1, 1), pa.schema([])).schema.names, "dataset", "model"))


def passthrough_of(schema: pa.Schema) -> pa.Schema:
    """Return the columns of an images table that came from its source."""
    own = set(images_spec((1, 1, 1), pa.schema([])).schema.names)
    return pa.schema([field for field in schema if field.name not in own])


_TIME = pa.timestamp("us", "UTC")


def type_named(name: str) -> pa.DataType:
    """Return the Arrow type whose `str` is `name`, of those that passthrough columns have."""
    return _TIME if name == str(_TIME) else pa.type_for_alias(name)


SOURCES = TableSpec(
    "sources",
    owner="dataset",
    schema=pa.schema(
        [
            column("source_uri", pa.string(), "file of the source", required=True),
            column(
                "source_row", pa.int64(), "row in that file; -1: the file itself", required=True
            ),
            column("source_member", pa.string(), "name in the archive; null elsewhere"),
            column("etag", pa.string(), "version of the file that was read"),
            column("image_id", pa.string(), "sha256 of the row's bytes; null without bytes"),
            column("fate", pa.string(), "staged / refused / duplicate"),
            column("removed_night", pa.string(), "night on which the row left its source"),
            *provenance(),
        ]
    ),
    stats=("source_uri", "night"),
)

QUARANTINE = TableSpec(
    "quarantine",
    owner="dataset",
    schema=pa.schema(
        [
            column("source_uri", pa.string(), "file of the source", required=True),
            column(
                "source_row", pa.int64(), "row in that file; -1: the file itself", required=True
            ),
            column("source_member", pa.string(), "name in the archive; null elsewhere"),
            column("byte_length", pa.int64(), "size of the refused bytes; null without bytes"),
            column("content_hash", pa.string(), "sha256 of the refused bytes"),
            column("reason", pa.string(), "reason code", required=True),
            column("message", pa.string(), "what the decoder said"),
            *provenance(),
        ]
    ),
    stats=("reason", "night"),
)


# In commit order.
DATASET_TABLES = (QUARANTINE.name, SOURCES.name, "images")

"""The tables of a lake: columns, types, units and directions.

Imports neither ray nor torch, so that planning and querying start fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.columns import (
    MODEL_PARTITION,
    TableSpec,
    codes,
    column,
    model_partition,
    p_value,
    provenance,
    scores,
)
from jobs.documents import reading
from jobs.judgements import DRIFT, EVALUATIONS, evaluated_spec
from vae_core.score_names import SCORES

# What turns source bytes into staged pixels, as a number: it changes whenever the same bytes
# would give other pixels, and outputs of different numbers never mix. Guarded by golden pixels.
PREPROCESSING = 2
LARGEST_SIDE = 65_536  # of staged images

SPLITS = (("train", 80), ("validation", 5), ("calibration", 10), ("test", 5))


def split_of(image_id: str) -> str:
    """The split of an image, by its id alone, so that it never changes."""
    point = int(image_id[-8:], 16) % 100
    for split, share in SPLITS:
        if point < share:
            return split
        point -= share
    raise AssertionError("shares add up to 100")


# What rows of a release that had no such column get when their file is written anew.
UNKNOWN = "unknown"
# Field metadata that two runs on one table must agree on.
CONTRACT_KEYS = ("shape", "preprocessing", "fit", "background", "exact", "dimension")


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
        "images", pa.schema(columns), stats=("image_id", "source_uri", "split", "night")
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
    """The columns of an images table that came from its source."""
    own = set(images_spec((1, 1, 1), pa.schema([])).schema.names)
    return pa.schema([field for field in schema if field.name not in own])


_TIME = pa.timestamp("us", "UTC")


def type_named(name: str) -> pa.DataType:
    """The Arrow type whose `str` is `name`, of those that passthrough columns have."""
    return _TIME if name == str(_TIME) else pa.type_for_alias(name)


SOURCES = TableSpec(
    "sources",
    pa.schema(
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
    pa.schema(
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


def embeddings_spec(latent_dim: int) -> TableSpec:
    columns = [
        column("image_id", pa.string(), "the image", required=True),
        column("images_version", pa.int64(), "snapshot of the images table that was read"),
        *codes(latent_dim),
        *scores(),
        *_region(),
        column(
            "model_split",
            pa.string(),
            "the image's split in the snapshot that the model was trained on; null: a later image",
            older=UNKNOWN,
        ),
        p_value(),
        *provenance(),
    ]
    return TableSpec(
        "embeddings",
        pa.schema([*columns, *model_partition()]),
        partition_by=MODEL_PARTITION,
        stats=("image_id", "images_version", "night", "model_split", "p_value", *SCORES),
        sort_by="image_id",
    )


def _region() -> list[pa.Field]:
    place = "of the patch of max_patch_error: its first"
    return [
        column("max_patch_y", pa.int32(), f"{place} row", unit="pixels"),
        column("max_patch_x", pa.int32(), f"{place} column", unit="pixels"),
    ]


RECONSTRUCTIONS = TableSpec(
    "reconstructions",
    pa.schema(
        [
            column("image_id", pa.string(), "the image", required=True),
            column("png", pa.binary(), "reconstruction at the posterior mean, PNG bytes"),
            *provenance(),
            *model_partition(),
        ]
    ),
    partition_by=MODEL_PARTITION,
    stats=("image_id", "night"),
    sort_by="image_id",
)

_BATCH = column(
    "batch",
    pa.string(),
    "vA-vB: what one commit published, of these versions of the images table; .N: the Nth",
)

ANOMALIES = TableSpec(
    "anomalies",
    pa.schema(
        [
            column("image_id", pa.string(), "the flagged image", required=True),
            _BATCH,
            column("rank", pa.int64(), "1: the most anomalous of its batch, by decision score"),
            column("decision_score", pa.string(), "name of the score that decides"),
            p_value(),
            column(
                "q_value",
                pa.float64(),
                "the smallest false-discovery rate at which the image is flagged, "
                "by Benjamini-Hochberg over its batch",
                unit="probability",
                anomalous="lower",
            ),
            column("alpha", pa.float64(), "the level at which it was flagged", unit="probability"),
            column(
                "calibration_valid",
                pa.bool_(),
                "whether the p-values can be believed: false after drift, or where scores and "
                "calibration were computed differently",
            ),
            *scores(),
            *_region(),
            column("max_patch_side", pa.int32(), "side of that patch", unit="pixels"),
            column(
                "latents",
                pa.list_(pa.field("element", pa.int32())),
                "latent dimensions with the largest KL, largest first; null without a prior",
            ),
            column(
                "latent_kl",
                pa.list_(pa.field("element", pa.float64())),
                "their KL",
                unit="nats",
            ),
            *provenance(),
            *model_partition(),
        ]
    ),
    partition_by=MODEL_PARTITION,
    stats=("image_id", "batch", "night", "p_value", "q_value"),
)

BATCHES = TableSpec(
    "batches",
    pa.schema(
        [
            _BATCH,
            column("first_version", pa.int64(), "of the images table: its first"),
            column("last_version", pa.int64(), "of the images table: its last"),
            column("tested", pa.int64(), "images that were held against the calibration"),
            column("flagged", pa.int64(), "of them anomalies"),
            column("alpha", pa.float64(), "false-discovery rate asked for", unit="probability"),
            column("calibration_images", pa.int64(), "that the p-values stand on"),
            column("fewest_flaggable", pa.int64(), "fewer can never be flagged, however extreme"),
            column("decision_score", pa.string(), "name of the score that decides"),
            column("calibration_valid", pa.bool_(), "whether the p-values can be believed"),
            *provenance(),
            *model_partition(),
        ]
    ),
    partition_by=MODEL_PARTITION,
    stats=("batch", "last_version", "night"),
)

# All that a model's embed publishes but the embeddings, whose schema has the latent dimension.
MODEL_TABLES = {spec.name: spec for spec in (RECONSTRUCTIONS, ANOMALIES, BATCHES)}

# In commit order.
DATASET_TABLES = (QUARANTINE.name, SOURCES.name, "images")
EMBED_TABLES = (*MODEL_TABLES, "embeddings")

# Derived from the embeddings, by a job of its own.
MAPS = TableSpec(
    "maps",
    pa.schema(
        [
            column("image_id", pa.string(), "the image", required=True),
            column("x", pa.float32(), "of its embedding on a plane"),
            column("y", pa.float32(), "of its embedding on a plane"),
            column("embeddings_version", pa.int64(), "of the embeddings table that was read"),
            *provenance(),
            *model_partition(),
            column("method", pa.string(), "pca / umap: what made the plane", required=True),
        ]
    ),
    partition_by=(*MODEL_PARTITION, "method"),
    stats=("image_id", "x", "y", "embeddings_version", "night"),
)

ALIASES = TableSpec(
    "aliases",
    pa.schema(
        [
            column("sequence", pa.int64(), "grows by one a change; the last one holds"),
            column("model", pa.string(), "the model", required=True),
            column("alias", pa.string(), "the name", required=True),
            column("version", pa.string(), "version of the bundle it names", required=True),
            column("reason", pa.string(), "why it was moved"),
            column("moved_by", pa.string(), "who moved it; null before release 0.2"),
            column("night", pa.string(), "logical night of the run (YYYY-MM-DD)"),
            column("job_id", pa.string(), "the job that moved it"),
        ]
    ),
    stats=("sequence",),
)

RUNS = TableSpec(
    "runs",
    pa.schema(
        [
            column("job_id", pa.string(), "the job", required=True),
            column(
                "job",
                pa.string(),
                "stage / train / embed / evaluate / drift / promote / …",
            ),
            column("target", pa.string(), "dataset or model it worked on"),
            column("night", pa.string(), "logical night"),
            column("finished_at", pa.timestamp("us", "UTC"), "wall clock at the commit"),
            column(
                "sequence",
                pa.int64(),
                "grows with each job that finishes, whatever the clock says; null before "
                "release 0.2",
            ),
            column("seconds", pa.float64(), "wall time of the process that finished it", unit="s"),
            column("counts", pa.string(), "JSON: what was counted"),
            column("versions", pa.string(), "JSON: version of each table it published"),
            column("config", pa.string(), "JSON: the config that made it"),
            column("code", pa.string(), "version of latentlake"),
        ]
    ),
    stats=("job", "night"),
)


CATALOG_TABLES = (ALIASES.name, RUNS.name, EVALUATIONS.name, DRIFT.name)


def every_spec() -> list[TableSpec]:
    """One of each kind of table, without passthrough columns and of one latent dimension."""
    of_datasets = [images_spec((1, 1, 1), pa.schema([])), SOURCES, QUARANTINE]
    of_models = [embeddings_spec(1), *MODEL_TABLES.values(), MAPS, evaluated_spec(1)]
    return [*of_datasets, *of_models, EVALUATIONS, DRIFT, ALIASES, RUNS]

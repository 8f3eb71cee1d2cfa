"""The tables of a lake: columns, types, units and directions.

Imports neither ray nor torch, so that planning and querying start fast.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from vae_core.score_names import SCORES

# What turns source bytes into staged pixels, as a number: it changes whenever the same bytes
# would give other pixels, and outputs of different numbers never mix. Guarded by golden pixels.
PREPROCESSING = 2

SPLITS = (("train", 80), ("validation", 5), ("calibration", 10), ("test", 5))


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """A kind of table. `schema` is that of the rows; partition columns are part of it.

    stats: columns whose ends the commit log has for each file. sort_by: column by which the rows
    of a file are sorted.
    """

    name: str
    schema: pa.Schema
    partition_by: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()
    sort_by: str | None = None

    @property
    def file_schema(self) -> pa.Schema:
        """Columns that are inside a file: all but the partition columns."""
        return pa.schema([f for f in self.schema if f.name not in self.partition_by])


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


def _field(
    name: str, kind: pa.DataType, comment: str, *, required: bool = False, **extra: str
) -> pa.Field:
    return pa.field(name, kind, nullable=not required, metadata={"comment": comment, **extra})


def _provenance() -> list[pa.Field]:
    return [
        _field("night", pa.string(), "logical night of the run (YYYY-MM-DD)"),
        _field("job_id", pa.string(), "the job that published the row"),
        _field("unit_id", pa.string(), "the unit that wrote the row"),
    ]


def images_spec(
    image_shape: tuple[int, int, int],
    passthrough: pa.Schema,
    look: Mapping[str, Any] | None = None,
) -> TableSpec:
    """image_shape: H, W, C of every image of the dataset. look: what else its pixels depend on."""
    size = image_shape[0] * image_shape[1] * image_shape[2]
    columns = [
        _field("image_id", pa.string(), "sha256 of the encoded source bytes", required=True),
        _field(
            "image",
            pa.binary(size),
            "uint8 pixels, H·W·C",
            required=False,
            shape=json.dumps(list(image_shape)),
            preprocessing=str(PREPROCESSING),
            **{name: json.dumps(value) for name, value in (look or {}).items()},
        ),
        _field("pixels_hash", pa.string(), "sha256 of the staged pixels"),
        _field("source_uri", pa.string(), "where its first occurrence was read"),
        _field("source_row", pa.int64(), "row of its first occurrence"),
        _field("source_member", pa.string(), "its name in the archive; null elsewhere"),
        _field("source_format", pa.string(), "JPEG, PNG, …; array for pixels"),
        _field("source_mode", pa.string(), "colour mode as it came: L, RGB, CMYK, …"),
        _field("source_width", pa.int32(), "width before resizing, in pixels"),
        _field("source_height", pa.int32(), "height before resizing, in pixels"),
        _field("phash", pa.int64(), "perceptual hash: near duplicates differ in few bits"),
        _field("split", pa.string(), "train / validation / calibration / test, by image_id"),
        *_provenance(),
        *passthrough,
    ]
    return TableSpec(
        "images", pa.schema(columns), stats=("image_id", "source_uri", "split", "night")
    )


def image_shape_of(schema: pa.Schema) -> tuple[int, int, int]:
    """H, W, C of an images table, from its schema's metadata."""
    height, width, channels = json.loads(schema.field("image").metadata[b"shape"])
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
            _field("source_uri", pa.string(), "file of the source", required=True),
            _field(
                "source_row", pa.int64(), "row in that file; -1: the file itself", required=True
            ),
            _field("source_member", pa.string(), "name in the archive; null elsewhere"),
            _field("etag", pa.string(), "version of the file that was read"),
            _field("image_id", pa.string(), "sha256 of the row's bytes; null without bytes"),
            _field("fate", pa.string(), "staged / refused / duplicate"),
            _field("removed_night", pa.string(), "night on which the row left its source"),
            *_provenance(),
        ]
    ),
    stats=("source_uri", "night"),
)

QUARANTINE = TableSpec(
    "quarantine",
    pa.schema(
        [
            _field("source_uri", pa.string(), "file of the source", required=True),
            _field(
                "source_row", pa.int64(), "row in that file; -1: the file itself", required=True
            ),
            _field("source_member", pa.string(), "name in the archive; null elsewhere"),
            _field("byte_length", pa.int64(), "size of the refused bytes; null without bytes"),
            _field("content_hash", pa.string(), "sha256 of the refused bytes"),
            _field("reason", pa.string(), "reason code", required=True),
            _field("message", pa.string(), "what the decoder said"),
            *_provenance(),
        ]
    ),
    stats=("reason", "night"),
)


def embeddings_spec(latent_dim: int) -> TableSpec:
    vector = pa.list_(pa.field("element", pa.float32()))
    dimension = str(latent_dim)
    columns = [
        _field("image_id", pa.string(), "the image", required=True),
        _field("images_version", pa.int64(), "snapshot of the images table that was read"),
        _field("embedding", vector, "posterior mean", dimension=dimension),
        _field(
            "embedding_log_var",
            vector,
            "posterior log-variance; null for a deterministic posterior",
            dimension=dimension,
        ),
        *_scores(),
        *_region(),
        _field(
            "model_split",
            pa.string(),
            "the image's split in the snapshot that the model was trained on; null: a later image",
            older=UNKNOWN,
        ),
        _p_value(),
        *_provenance(),
    ]
    return TableSpec(
        "embeddings",
        pa.schema([*columns, *_model_partition()]),
        partition_by=MODEL_PARTITION,
        stats=("image_id", "images_version", "night", "model_split", "p_value", *SCORES),
        sort_by="image_id",
    )


def _scores() -> list[pa.Field]:
    return [
        _field(name, pa.float64(), info.meaning, unit=info.unit, anomalous=info.anomalous)
        for name, info in SCORES.items()
    ]


def _region() -> list[pa.Field]:
    place = "of the patch of max_patch_error: its first"
    return [
        _field("max_patch_y", pa.int32(), f"{place} row", unit="pixels"),
        _field("max_patch_x", pa.int32(), f"{place} column", unit="pixels"),
    ]


def _p_value() -> pa.Field:
    return _field(
        "p_value",
        pa.float64(),
        "conformal p-value of the bundle's decision score; null for images trained on",
        unit="probability",
        anomalous="lower",
    )


def _model_partition() -> list[pa.Field]:
    return [
        _field("model_version", pa.string(), "version of the bundle", required=True),
        _field("dataset", pa.string(), "dataset of the image", required=True),
    ]


MODEL_PARTITION = ("model_version", "dataset")

RECONSTRUCTIONS = TableSpec(
    "reconstructions",
    pa.schema(
        [
            _field("image_id", pa.string(), "the image", required=True),
            _field("png", pa.binary(), "reconstruction at the posterior mean, PNG bytes"),
            *_provenance(),
            *_model_partition(),
        ]
    ),
    partition_by=MODEL_PARTITION,
    stats=("image_id", "night"),
    sort_by="image_id",
)

_BATCH = _field(
    "batch",
    pa.string(),
    "vA-vB: what one commit published, of these versions of the images table; .N: the Nth",
)

ANOMALIES = TableSpec(
    "anomalies",
    pa.schema(
        [
            _field("image_id", pa.string(), "the flagged image", required=True),
            _BATCH,
            _field("rank", pa.int64(), "1: the most anomalous of its batch, by decision score"),
            _field("decision_score", pa.string(), "name of the score that decides"),
            _p_value(),
            _field(
                "q_value",
                pa.float64(),
                "the smallest false-discovery rate at which the image is flagged, "
                "by Benjamini-Hochberg over its batch",
                unit="probability",
                anomalous="lower",
            ),
            _field("alpha", pa.float64(), "the level at which it was flagged", unit="probability"),
            _field(
                "calibration_valid",
                pa.bool_(),
                "whether the p-values can be believed: false after drift, or where scores and "
                "calibration were computed differently",
            ),
            *_scores(),
            *_region(),
            _field("max_patch_side", pa.int32(), "side of that patch", unit="pixels"),
            _field(
                "latents",
                pa.list_(pa.field("element", pa.int32())),
                "latent dimensions with the largest KL, largest first; null without a prior",
            ),
            _field(
                "latent_kl",
                pa.list_(pa.field("element", pa.float64())),
                "their KL",
                unit="nats",
            ),
            *_provenance(),
            *_model_partition(),
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
            _field("first_version", pa.int64(), "of the images table: its first"),
            _field("last_version", pa.int64(), "of the images table: its last"),
            _field("tested", pa.int64(), "images that were held against the calibration"),
            _field("flagged", pa.int64(), "of them anomalies"),
            _field("alpha", pa.float64(), "false-discovery rate asked for", unit="probability"),
            _field("calibration_images", pa.int64(), "that the p-values stand on"),
            _field("fewest_flaggable", pa.int64(), "fewer can never be flagged, however extreme"),
            _field("decision_score", pa.string(), "name of the score that decides"),
            _field("calibration_valid", pa.bool_(), "whether the p-values can be believed"),
            *_provenance(),
            *_model_partition(),
        ]
    ),
    partition_by=MODEL_PARTITION,
    stats=("batch", "last_version", "night"),
)

# All that a model's embed publishes but the embeddings, whose schema has the latent dimension.
MODEL_TABLES = {spec.name: spec for spec in (RECONSTRUCTIONS, ANOMALIES, BATCHES)}

# Derived from the embeddings, by a job of its own.
MAPS = TableSpec(
    "maps",
    pa.schema(
        [
            _field("image_id", pa.string(), "the image", required=True),
            _field("x", pa.float32(), "of its embedding on a plane"),
            _field("y", pa.float32(), "of its embedding on a plane"),
            _field("embeddings_version", pa.int64(), "of the embeddings table that was read"),
            *_provenance(),
            *_model_partition(),
            _field("method", pa.string(), "pca / umap: what made the plane", required=True),
        ]
    ),
    partition_by=(*MODEL_PARTITION, "method"),
    stats=("image_id", "x", "y", "embeddings_version", "night"),
)

ALIASES = TableSpec(
    "aliases",
    pa.schema(
        [
            _field("sequence", pa.int64(), "grows by one a change; the last one holds"),
            _field("model", pa.string(), "the model", required=True),
            _field("alias", pa.string(), "the name", required=True),
            _field("version", pa.string(), "version of the bundle it names", required=True),
            _field("reason", pa.string(), "why it was moved"),
            _field("job_id", pa.string(), "the job that moved it"),
        ]
    ),
    stats=("sequence",),
)

RUNS = TableSpec(
    "runs",
    pa.schema(
        [
            _field("job_id", pa.string(), "the job", required=True),
            _field("job", pa.string(), "stage / train / embed / map / compact / drop"),
            _field("target", pa.string(), "dataset or model it worked on"),
            _field("night", pa.string(), "logical night"),
            _field("finished_at", pa.timestamp("us", "UTC"), "wall clock at the commit"),
            _field("seconds", pa.float64(), "wall time of the process that finished it", unit="s"),
            _field("counts", pa.string(), "JSON: what was counted"),
            _field("versions", pa.string(), "JSON: version of each table it published"),
            _field("config", pa.string(), "JSON: the config that made it"),
            _field("code", pa.string(), "version of latentlake"),
        ]
    ),
    stats=("job", "night"),
)


def every_spec() -> list[TableSpec]:
    """One of each kind of table, without passthrough columns and of one latent dimension."""
    of_datasets = [images_spec((1, 1, 1), pa.schema([])), SOURCES, QUARANTINE]
    return [*of_datasets, embeddings_spec(1), *MODEL_TABLES.values(), MAPS, ALIASES, RUNS]

"""The tables of a model: what embed and evaluate write."""

from __future__ import annotations

import pyarrow as pa

from jobs.schemas.spec import (
    MODEL_PARTITION,
    TableSpec,
    codes,
    column,
    model_partition,
    p_value,
    provenance,
    scores,
)
from vae_core.scores.names import SCORES

# What rows of a release that had no such column get when their file is written anew.
UNKNOWN = "unknown"


def embeddings_spec(latent_dim: int) -> TableSpec:
    """Describe the embeddings table of a model with so many latents."""
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
        owner="model",
        schema=pa.schema([*columns, *model_partition()]),
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
    owner="model",
    schema=pa.schema(
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
    owner="model",
    schema=pa.schema(
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
                "whether the p-values are valid: false after drift, or where scores and "
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
    owner="model",
    schema=pa.schema(
        [
            _BATCH,
            column("first_version", pa.int64(), "of the images table: its first"),
            column("last_version", pa.int64(), "of the images table: its last"),
            column("tested", pa.int64(), "images that were compared with the calibration"),
            column("flagged", pa.int64(), "of them anomalies"),
            column("alpha", pa.float64(), "false-discovery rate requested", unit="probability"),
            column("calibration_images", pa.int64(), "that the p-values stand on"),
            column("fewest_flaggable", pa.int64(), "fewer can never be flagged, however extreme"),
            column("decision_score", pa.string(), "name of the score that decides"),
            column("calibration_valid", pa.bool_(), "whether the p-values are valid"),
            *provenance(),
            *model_partition(),
        ]
    ),
    partition_by=MODEL_PARTITION,
    stats=("batch", "last_version", "night"),
)


# All that a model's embed publishes but the embeddings, whose schema has the latent dimension.
MODEL_TABLES = {spec.name: spec for spec in (RECONSTRUCTIONS, ANOMALIES, BATCHES)}


EMBED_TABLES = (*MODEL_TABLES, "embeddings")


# Derived from the embeddings, by a job of its own.
MAPS = TableSpec(
    "maps",
    owner="model",
    schema=pa.schema(
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


def evaluated_spec(latent_dim: int) -> TableSpec:
    """One row an image of the test split: what `evaluations` sums up and `compare` pairs."""
    columns = [
        column("image_id", pa.string(), "the image, of the test split", required=True),
        column("images_version", pa.int64(), "snapshot of the images table that was read"),
        *codes(latent_dim),
        column(
            "log_likelihood",
            pa.float64(),
            "importance-weighted bound of log p(x); null without a prior",
            unit="nats",
            anomalous="lower",
        ),
        column("samples", pa.int32(), "posterior samples (K) in log_likelihood"),
        *scores(),
        p_value(),
        column("probe_right", pa.bool_(), "whether the probe read its label right; null: no probe"),
        column("is_anomaly", pa.bool_(), "as the anomaly column tells; null where there is none"),
        *provenance(),
    ]
    return TableSpec(
        "evaluated",
        owner="model",
        schema=pa.schema([*columns, *model_partition()]),
        partition_by=MODEL_PARTITION,
        stats=("image_id", "images_version", "night"),
        sort_by="image_id",
    )

"""The tables that judge a model and a night: what `evaluate` and `drift` write."""

from __future__ import annotations

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
        pa.schema([*columns, *model_partition()]),
        partition_by=MODEL_PARTITION,
        stats=("image_id", "images_version", "night"),
        sort_by="image_id",
    )


EVALUATIONS = TableSpec(
    "evaluations",
    pa.schema(
        [
            column("model", pa.string(), "the model", required=True),
            column("model_version", pa.string(), "version of the bundle", required=True),
            column("dataset", pa.string(), "dataset of the images", required=True),
            column("images_version", pa.int64(), "snapshot whose test split was read"),
            column("metric", pa.string(), "name of the number", required=True),
            column("of", pa.string(), "the score, label column or latent dimension; null: of all"),
            column("value", pa.float64(), "null where it could not be had: see note"),
            column("low", pa.float64(), "lower end of its interval; null where it has none"),
            column("high", pa.float64(), "upper end of its interval; null where it has none"),
            column("confidence", pa.float64(), "of the interval", unit="probability"),
            column("unit", pa.string(), "of value"),
            column("better", pa.string(), "higher / lower / none"),
            column("images", pa.int64(), "images that it stands on"),
            column("note", pa.string(), "what has to be known of it; why there is none"),
            *provenance(),
        ]
    ),
    stats=("model", "model_version", "dataset", "images_version", "metric", "night"),
)

DRIFT = TableSpec(
    "drift",
    pa.schema(
        [
            column("model", pa.string(), "the model", required=True),
            column("model_version", pa.string(), "version of the bundle", required=True),
            column("dataset", pa.string(), "dataset of the images", required=True),
            column(
                "sequence",
                pa.int64(),
                "grows by one a judgement of a model version and dataset; the last one holds",
            ),
            column("first_version", pa.int64(), "of the images table: the first of the arrivals"),
            column("last_version", pa.int64(), "of the images table: the last of the arrivals"),
            column(
                "test",
                pa.string(),
                "combined / hotelling / mmd / classifier / ks / fisher; combined decides",
                required=True,
            ),
            column("sample", pa.string(), "embeddings / scores / pixels / source; null: all"),
            column("of", pa.string(), "the score, column or latent dimension; null: of all"),
            column("p_value", pa.float64(), "that no drift explains it", unit="probability"),
            column("effect", pa.float64(), "how large the change is; null where there is no one"),
            column("effect_unit", pa.string(), "of effect"),
            column("arrivals", pa.int64(), "images of the night that were held against it"),
            column("reference", pa.int64(), "images of the model's snapshot, of its test split"),
            column("alpha", pa.float64(), "what this night may spend", unit="probability"),
            column("drifted", pa.bool_(), "of combined: whether drift was found; null: not tested"),
            column("note", pa.string(), "what has to be known of it; why nothing was tested"),
            column(
                "embed_jobs",
                pa.list_(pa.field("element", pa.string())),
                "of combined: the jobs that embedded the arrivals",
            ),
            *provenance(),
        ]
    ),
    stats=("model", "model_version", "dataset", "last_version", "test", "night"),
)

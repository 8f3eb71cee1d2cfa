"""Columns as the tables of a lake have them: each with a comment, and with what many share."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pyarrow as pa

from jobs.schemas.vectors import VECTOR
from vae_core.scores.names import SCORES

# Field metadata that two runs on one table must agree on.
CONTRACT_KEYS = ("shape", "preprocessing", "fit", "background", "exact", "dimension")


MODEL_PARTITION = ("model_version", "dataset")


Owner = Literal["dataset", "model", "catalog"]


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """A kind of table.

    Attributes:
        name: of the table, and of the view over all of its kind.
        schema: of the rows; partition columns are part of it.
        owner: what there is one of for each dataset, each model, or once in a lake.
        partition_by: columns that are folders, and not inside the files.
        stats: columns whose ends the commit log has for each file.
        sort_by: column by which the rows of a file are sorted.
    """

    name: str
    schema: pa.Schema
    owner: Owner = dataclasses.field(kw_only=True)
    partition_by: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()
    sort_by: str | None = None

    @property
    def file_schema(self) -> pa.Schema:
        """Columns that are inside a file: all but the partition columns."""
        return pa.schema([f for f in self.schema if f.name not in self.partition_by])


def column(
    name: str, kind: pa.DataType, comment: str, *, required: bool = False, **extra: str
) -> pa.Field:
    """Make a column with a comment; `extra` becomes metadata too, such as unit=nats."""
    return pa.field(name, kind, nullable=not required, metadata={"comment": comment, **extra})


def provenance() -> list[pa.Field]:
    """Return the columns that say which night, job and unit made a row."""
    return [
        column("night", pa.string(), "logical night of the run (YYYY-MM-DD)"),
        column("job_id", pa.string(), "the job that published the row"),
        column("unit_id", pa.string(), "the unit that wrote the row"),
    ]


def codes(latent_dim: int) -> list[pa.Field]:
    """Return the columns of an embedding and its log-variance."""
    dimension = str(latent_dim)
    return [
        column("embedding", VECTOR, "posterior mean", dimension=dimension),
        column(
            "embedding_log_var",
            VECTOR,
            "posterior log-variance; null for a deterministic posterior",
            dimension=dimension,
        ),
    ]


def scores() -> list[pa.Field]:
    """Return a column for each score."""
    return [
        column(name, pa.float64(), info.meaning, unit=info.unit, anomalous=info.anomalous)
        for name, info in SCORES.items()
    ]


def p_value() -> pa.Field:
    """Return the column of the decision score's p-value."""
    return column(
        "p_value",
        pa.float64(),
        "conformal p-value of the bundle's decision score; null for images trained on",
        unit="probability",
        anomalous="lower",
    )


def model_partition() -> list[pa.Field]:
    """Return the columns that a model's tables are partitioned by."""
    return [
        column("model_version", pa.string(), "version of the bundle", required=True),
        column("dataset", pa.string(), "dataset of the image", required=True),
    ]

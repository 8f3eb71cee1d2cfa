"""What units of evaluate leave for the last one: a file each, in the job's folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jobs.errors import JobError
from jobs.lake.paths import LakePaths
from jobs.lake.storage import exists, join
from jobs.schemas.spec import TableSpec, codes, column, scores
from jobs.schemas.vectors import vectors_of
from jobs.tables.shards import read_shard

FOLDER = "parts"


def part_spec(latent_dim: int) -> TableSpec:
    """Of the train split ids, codes and labels alone."""
    columns = [
        column("image_id", pa.string(), "the image", required=True),
        column("shard", pa.string(), "of its images table: the file it lies in"),
        column("row", pa.int64(), "its row there"),
        column("label", pa.string(), "its label, as text"),
        column("is_anomaly", pa.float64(), "1: anomalous, 0: normal; null: unknown"),
        *codes(latent_dim),
        column("log_likelihood", pa.float64(), "importance-weighted bound", unit="nats"),
        column("inference_gap", pa.float64(), "what the encoder loses of it", unit="nats"),
        *scores(),
        column("p_value", pa.float64(), "of the decision score"),
    ]
    return TableSpec(FOLDER, pa.schema(columns), owner="model", sort_by="image_id")


def parts_uri(lake: LakePaths, job_id: str) -> str:
    """Locate the folder of a job's parts."""
    return join(lake.units(job_id), FOLDER)


def read_parts(lake: LakePaths, job_id: str, paths: Sequence[str], latent_dim: int) -> pa.Table:
    """All of them, by image id. Raises JobError where another run has cleared them away."""
    uris = [join(parts_uri(lake, job_id), path) for path in paths]
    gone = next((uri for uri in uris if not exists(uri)), None)
    if gone is not None:
        raise JobError(f"{gone} is gone: another run has finished {job_id}; run it again")
    tables = [read_shard(uri) for uri in uris]
    found = pa.concat_tables([part_spec(latent_dim).file_schema.empty_table(), *tables])
    return found.sort_by("image_id")


def floats(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of numbers, (N,), NaN for null."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def vectors(table: pa.Table, name: str) -> np.ndarray | None:
    """Return a column of vectors, (N, D) float32; None where they are null."""
    return None if table[name].null_count else vectors_of(table[name])

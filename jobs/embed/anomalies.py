"""flag: which images of a night's batch are anomalies, decided once over the whole batch.

A batch is what one commit publishes: with `--commit-every` a part of what arrived, else all of it.
Its p-values, other than those of images that shaped or calibrated the model, go through
Benjamini–Hochberg together, after all units of the plan, by a unit of its own: a crash
cannot change what is flagged.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.schemas.model import ANOMALIES
from jobs.schemas.vectors import vectors_of
from jobs.tables.shards import read_shard
from vae_core.scores.names import SCORES, patch_side
from vae_core.stats.conformal import fewest_flaggable, q_values

LATENTS = 3  # dimensions that are reported of an anomaly
SLACK = 1e-12  # 0.1 is 0.1, however it was multiplied together
PLACE = ("max_patch_y", "max_patch_x")


@dataclasses.dataclass(frozen=True)
class FlaggedBatch:
    """first, last: versions of the images table whose images may be in it. number: of the batches
    that end with that version. calibration: images. valid: its p-values."""

    first: int
    last: int
    number: int
    alpha: float
    decision_score: str
    calibration: int
    valid: bool
    image_shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Name the batch, such as v3-v5, or v3-v5.2 for the second that ends there."""
        return f"v{self.first}-v{self.last}" + (f".{self.number}" if self.number > 1 else "")


@dataclasses.dataclass(frozen=True)
class Flagged:
    """anomalies: columns by name, worst first; batch: its row. Without provenance, partition."""

    anomalies: dict[str, Any]
    batch: dict[str, Any]


def flag(batch: FlaggedBatch, files: Sequence[str]) -> Flagged:
    """Flag the anomalies of a batch.

    files: URIs of its embeddings. Memory is that of a file, of the distinct p-values and of the
    flagged rows.
    """
    counted: Counter[float] = Counter()
    for uri in files:
        rows = _tested(uri, ["p_value"])
        values, counts = np.unique(rows["p_value"].to_numpy(), return_counts=True)
        counted.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    values_K = np.array(sorted(counted))
    counts_K = np.array([counted[value] for value in values_K.tolist()], np.int64)
    q_K = q_values(values_K, counts_K) if len(values_K) else values_K
    flagged = values_K[q_K <= batch.alpha * (1.0 + SLACK)]
    found = [_rows_below(uri, flagged[-1]) for uri in files if len(flagged)]
    columns: dict[str, Any] = {}
    if found:
        rows = _worst_first(pa.concat_tables(found), batch.decision_score)
        q_N = q_K[np.searchsorted(values_K, rows["p_value"].to_numpy())]
        columns = _columns(batch, rows, q_N)
    tested = int(counts_K.sum())
    row = {
        "batch": batch.name,
        "first_version": batch.first,
        "last_version": batch.last,
        "tested": tested,
        "flagged": len(columns.get("image_id", ())),
        "alpha": batch.alpha,
        "calibration_images": batch.calibration,
        "fewest_flaggable": fewest_flaggable(tested, batch.calibration, batch.alpha),
        "decision_score": batch.decision_score,
        "calibration_valid": batch.valid,
    }
    return Flagged(columns, row)


def _tested(uri: str, columns: Sequence[str]) -> pa.Table:
    """Rows that enter the correction: with a p-value, and none of the calibration images."""
    rows = read_shard(uri, [*columns, "model_split"])
    kept = pc.and_not(  # type: ignore[attr-defined]
        rows["p_value"].is_valid(),
        pc.equal(rows["model_split"], "calibration").fill_null(False),  # type: ignore[attr-defined]
    )
    return rows.filter(kept).select(columns)


def _rows_below(uri: str, threshold: float) -> pa.Table:
    wanted = ["image_id", "p_value", *SCORES, *PLACE, "embedding", "embedding_log_var"]
    rows = _tested(uri, wanted)
    return rows.filter(pc.less_equal(rows["p_value"], threshold))  # type: ignore[attr-defined]


def _worst_first(rows: pa.Table, decision_score: str) -> pa.Table:
    """By p-value; of equal ones the larger score goes first."""
    order = [("p_value", "ascending"), (decision_score, "descending"), ("image_id", "ascending")]
    return rows.sort_by(order)


def _columns(batch: FlaggedBatch, rows: pa.Table, q_N: np.ndarray) -> dict[str, Any]:
    count = rows.num_rows
    latents, kl = _largest_kl(rows["embedding"], rows["embedding_log_var"])
    return {
        "image_id": rows["image_id"],
        "batch": [batch.name] * count,
        "rank": np.arange(1, count + 1),
        "decision_score": [batch.decision_score] * count,
        "p_value": rows["p_value"],
        "q_value": q_N,
        "alpha": np.full(count, batch.alpha),
        "calibration_valid": [batch.valid] * count,
        **{name: rows[name] for name in (*SCORES, *PLACE)},
        "max_patch_side": np.full(count, patch_side(*batch.image_shape[:2]), np.int32),
        "latents": latents,
        "latent_kl": kl,
    }


def _largest_kl(mean: pa.ChunkedArray, log_var: pa.ChunkedArray) -> tuple[Any, Any]:
    """Dimensions by KL to the standard normal prior, and their KL; nulls without a spread."""
    count = len(mean)
    if log_var.null_count == count:
        return pa.nulls(count), pa.nulls(count)
    mean_ND = vectors_of(mean).astype(np.float64)
    log_var_ND = vectors_of(log_var).astype(np.float64)
    kl_ND = 0.5 * (mean_ND**2 + np.exp(log_var_ND) - 1.0 - log_var_ND)
    largest = np.argsort(-kl_ND, axis=1, kind="stable")[:, :LATENTS]
    return largest.tolist(), np.take_along_axis(kl_ND, largest, axis=1).tolist()


def anomalies_table(flagged: Flagged, stamp: dict[str, str]) -> pa.Table:
    """Rows of the table `anomalies`, in its file schema."""
    count = len(flagged.anomalies.get("image_id", ()))
    schema = ANOMALIES.file_schema
    columns = flagged.anomalies | {name: [value] * count for name, value in stamp.items()}
    arrays = [columns.get(field.name, pa.nulls(0, field.type)) for field in schema]
    return pa.table([_typed(a, f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)


def _typed(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)

"""Vectors in tables: lists of float32 whose dimension the schema names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

VECTOR = pa.list_(pa.field("element", pa.float32()))


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of embeddings as a matrix (N, D)."""
    parts = [c.flatten().to_numpy(zero_copy_only=False) for c in column.chunks]
    count = sum(len(chunk) for chunk in column.chunks)
    return np.concatenate(parts).reshape(count, -1) if count else np.zeros((0, 0), np.float32)


def dimension_of(schema: pa.Schema) -> int | None:
    """Of the embeddings in a table; None where that is not known."""
    place = schema.get_field_index("embedding")
    dimension = (schema.field(place).metadata or {}).get(b"dimension") if place >= 0 else None
    return int(dimension) if dimension is not None else None


def vector_column(values_ND: np.ndarray) -> pa.Array:
    """Vectors as a column of embeddings."""
    count, dim = values_ND.shape
    offsets = pa.array(np.arange(0, (count + 1) * dim, dim, dtype=np.int32))
    flat = pa.array(np.ascontiguousarray(values_ND, dtype=np.float32).reshape(-1))
    return pa.ListArray.from_arrays(offsets, flat)

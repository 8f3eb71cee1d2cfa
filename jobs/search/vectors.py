"""All embeddings of a model version, in memory, in the order of the table's files."""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import InputError
from jobs.lake.storage import join
from jobs.schemas.vectors import vectors_of
from jobs.search.exact import lengths, nearest
from jobs.tables.delta import Snapshot, TableFile
from jobs.tables.shards import read_shard

READERS = 4

Found = tuple[np.ndarray, np.ndarray]  # rows, nearest first, and how far they are


@dataclasses.dataclass(frozen=True)
class Vectors:
    """matrix_ND: float32. ids and datasets: one a row."""

    ids: pa.Array
    datasets: pa.Array
    matrix_ND: np.ndarray

    @classmethod
    def read(cls, snapshot: Snapshot, version: str) -> Vectors:
        """snapshot: of embeddings, with at least one of that model version."""
        files = [file for file in snapshot.files({"model_version": version}) if file.rows]
        ends = np.cumsum([file.rows for file in files])
        matrix_ND = np.empty((ends[-1], dimension(snapshot)), np.float32)

        def read(file: TableFile, end: int) -> pa.ChunkedArray:
            rows = read_shard(join(snapshot.uri, file.path), ["image_id", "embedding"])
            matrix_ND[end - file.rows : end] = vectors_of(rows["embedding"])
            return rows["image_id"]

        with ThreadPoolExecutor(READERS) as pool:
            ids = list(pool.map(read, files, ends))
        datasets = [pa.repeat(file.partition["dataset"], file.rows) for file in files]
        chunks = [chunk for column in ids for chunk in column.chunks]
        return cls(pa.concat_arrays(chunks), pa.concat_arrays(datasets), matrix_ND)

    @functools.cached_property
    def _lengths_N(self) -> np.ndarray:
        return lengths(self.matrix_ND)

    def vector(self, row: int) -> np.ndarray:
        """Return the embedding of a row, (D,)."""
        return self.matrix_ND[row]

    def nearest(
        self, queries_QD: np.ndarray, k: int, metric: str, allowed_N: np.ndarray
    ) -> list[Found]:
        """For each query; see jobs.search.exact."""
        return nearest(self.matrix_ND, self._lengths_N, queries_QD, k, metric, allowed_N)


def dimension(snapshot: Snapshot) -> int:
    """Return the dimension of a table's embeddings."""
    return int((snapshot.schema.field("embedding").metadata or {})[b"dimension"])


def row_of(ids: pa.Array, image_id: str) -> int:
    """Of the image whose id starts so. Raises InputError where it is none, or several."""
    matches = pc.indices_nonzero(pc.starts_with(ids, image_id)).to_pylist()  # type: ignore[attr-defined]
    found = {ids[row].as_py() for row in matches}
    if not found:
        raise InputError(f"no embedded image has an id that starts with {image_id!r}")
    if len(found) > 1:
        raise InputError(
            f"{len(found)} images have an id that starts with {image_id!r}; add digits"
        )
    return matches[0]  # in several datasets, perhaps, with one and the same embedding


def is_image(ids: pa.Array, image_id: str) -> np.ndarray:
    """(N,) of bool."""
    return pc.equal(ids, image_id).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]

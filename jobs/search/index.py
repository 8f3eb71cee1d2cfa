"""index: an approximate nearest-neighbour index of a model version's embeddings (HNSW, usearch).

A derived thing beside the tables: of one version of the embeddings, which its name says, so that an
index of other embeddings is never used. Where there is none, the search is exact.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import time
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, LatentlakeError
from jobs.lake.documents import Unreadable, parsed
from jobs.lake.paths import LakePaths
from jobs.lake.storage import (
    begin,
    create,
    create_or_keep,
    delete,
    join,
    local_path,
    names_in,
    read,
    read_if_there,
)
from jobs.search.exact import distances
from jobs.search.vectors import Found, Vectors
from jobs.tables import catalog
from jobs.tables.delta import Snapshot

log = logging.getLogger("latentlake")

COPIES = 16  # of one image, in as many datasets
FILES = re.compile(r"(cosine|euclidean)-v\d+-[0-9a-f]{8}\.(usearch|parquet)")
AGAIN = "run latentlake index again"
LAYOUT = 1  # raised when an index would be read otherwise
METRIC = {"cosine": "cos", "euclidean": "l2sq"}
# Links a node, and candidates while one is added and requested. usearch's own (16, 128, 64) find
# four in ten of the nearest among vectors that no direction stands out of, these nearly all.
CONNECTIVITY, ADD, SEARCH = 32, 128, 256
# Vectors that are added at once do not see each other, which among few of them loses neighbours.
ALONE = 20_000


def build(lake: LakePaths, model: str, metric: str) -> dict[str, Any]:
    """Make the index of the published embeddings, unless it is there; earlier ones are removed.

    model: NAME[@VERSION|@ALIAS]. Raises InputError where usearch is not installed.
    """
    _usearch()
    begin(lake.uri)
    started = time.monotonic()
    name, version = catalog.resolve_model(lake, model)
    snapshot = catalog.embeddings_snapshot(lake, name, version)
    uri = _uri(lake, name, version, metric, snapshot)
    index = Index.find(lake, name, version, metric, snapshot)
    made = index is None
    rows = len(index.ids) if index is not None else _make(snapshot, version, metric, uri)
    return {
        "model": name,
        "model_version": version,
        "metric": metric,
        "embeddings_version": snapshot.version,
        "rows": rows,
        "made": made,
        "seconds": round(time.monotonic() - started, 3),
    }


def _make(snapshot: Snapshot, version: str, metric: str, uri: str) -> int:
    """Write the index and, last, what names its files; returns its rows."""
    vectors = Vectors.read(snapshot, version)
    rows, dim = vectors.matrix_ND.shape
    index = _usearch().Index(
        ndim=dim,
        metric=METRIC[metric],
        dtype="f32",
        connectivity=CONNECTIVITY,
        expansion_add=ADD,
        expansion_search=SEARCH,
    )
    keys_N = np.arange(rows)
    for part, threads in ((slice(0, ALONE), 1), (slice(ALONE, None), 0)):
        if len(keys_N[part]):
            index.add(keys_N[part], vectors.matrix_ND[part], threads=threads)
    keys = io.BytesIO()
    columns = {"image_id": vectors.ids, "dataset": vectors.datasets.dictionary_encode()}
    pq.write_table(pa.table(columns), keys, compression="zstd", compression_level=1)
    stem = f"{metric}-v{snapshot.version}-{uuid.uuid4().hex[:8]}"
    files = {"index": f"{stem}.usearch", "keys": f"{stem}.parquet"}
    folder = uri.rpartition("/")[0]
    data = memoryview(index.save()).cast("B")
    create(join(folder, files["index"]), data)
    create(join(folder, files["keys"]), keys.getbuffer())
    about = _IndexAbout(layout=LAYOUT, rows=rows, dimension=dim, bytes=len(data), **files)
    delete(uri)  # of one that could not be used
    create_or_keep(uri, json.dumps(dataclasses.asdict(about)).encode())
    _sweep(folder, metric, snapshot.version)
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class _IndexAbout:
    """What names the files of an index. bytes: of the one of usearch."""

    layout: int
    rows: int
    bytes: int
    index: str
    keys: str
    dimension: int = 0


def files_of(document: bytes | None) -> set[str]:
    """Return the names of the files that an index names; none where it cannot be read."""
    try:
        about = parsed(_IndexAbout, document or b"", "an index", AGAIN)
    except Unreadable:
        return set()
    return {about.index, about.keys}


def _uri(lake: LakePaths, model: str, version: str, metric: str, snapshot: Snapshot) -> str:
    return join(index_folder(lake, model, version), f"{metric}-v{snapshot.version}.json")


def index_folder(lake: LakePaths, model: str, version: str) -> str:
    """Locate the folder of a bundle's indexes."""
    return join(lake.uri, "indexes", model, version)


def _sweep(folder: str, metric: str, version: int) -> None:
    """Remove a metric's indexes of earlier embeddings; a later one is somebody else's."""
    for name in names_in(folder):
        found = re.match(rf"\.?{metric}-v(\d+)[-.]", name)
        if found is not None and int(found[1]) < version:
            delete(join(folder, name))


@dataclasses.dataclass(frozen=True)
class Index:
    """Approximate search among embeddings, which it holds itself."""

    ids: pa.Array
    datasets: pa.Array
    metric: str
    restored: Any

    @classmethod
    def find(
        cls, lake: LakePaths, model: str, version: str, metric: str, snapshot: Snapshot
    ) -> Index | None:
        """Return that of these very embeddings; None where there is none that can be used."""
        uri = _uri(lake, model, version, metric, snapshot)
        document = read_if_there(uri)
        if document is None:
            return None
        folder = uri.rpartition("/")[0]
        try:
            about = parsed(_IndexAbout, document, uri, AGAIN)
        except Unreadable as error:
            log.warning("%s; searching without", error)
            return None
        if about.layout != LAYOUT:
            return None
        try:
            keys = pq.read_table(io.BytesIO(read(join(folder, about.keys))))
            restored = _restored(join(folder, about.index), about.bytes)
        except (LatentlakeError, OSError, pa.ArrowException, RuntimeError, ValueError) as error:
            log.warning("the index %s cannot be used (%s); searching without", uri, error)
            return None
        if restored is None or len(restored) != about.rows or len(keys) != about.rows:
            log.warning("the index %s is not whole; searching without", uri)
            return None
        restored.expansion_search = SEARCH
        ids, datasets = (keys[name].combine_chunks() for name in ("image_id", "dataset"))
        return cls(ids, datasets.cast(pa.string()), metric, restored)

    def vector(self, row: int) -> np.ndarray:
        """Return the embedding of a row, (D,)."""
        return np.asarray(self.restored.get(row), np.float32)

    def nearest(self, queries_QD: np.ndarray, k: int, other_than: str | None) -> list[Found]:
        """For each query about the k nearest, with their exact distances.

        other_than: image that is not looked for.
        """
        spare = 0 if other_than is None else COPIES
        one = len(queries_QD) == 1
        found = self.restored.search(queries_QD, min(k + spare, len(self.restored)))
        each = []
        # Of one query it gives the matches themselves, of several a list of them.
        for matches, query_D in zip([found] if one else found, queries_QD, strict=True):
            rows = np.sort(matches.keys.astype(np.int64))
            if other_than is not None:
                same = [self.ids[row].as_py() == other_than for row in rows]
                rows = rows[~np.array(same, bool)]
            far = distances(np.asarray(self.restored.get(rows), np.float32), query_D, self.metric)
            best = np.argsort(far, kind="stable")[:k]
            each.append((rows[best], far[best]))
        return each


def _restored(uri: str, size: int) -> Any:
    """Map from local disk, read from a store. Raises ValueError where it was cut off."""
    path = local_path(uri)
    source = str(path) if path is not None else read(uri)
    found = path.stat().st_size if path is not None else len(source)
    if found != size:
        raise ValueError(f"{found} bytes instead of {size}")
    return _usearch().Index.restore(source, view=path is not None)


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise InputError("an index needs usearch: pip install 'latentlake[index]'") from error
    return usearch.index

"""The questions people ask of a lake, as Arrow tables. Needs neither ray nor torch.

from jobs.query import Lake

photos = Lake("s3://bucket/lake").embeddings("photos@champion")
photos.anomalies(top=10)
photos.neighbours("3f7a09", k=5)
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.bundles.manifest import read_about
from jobs.errors import InputError, unknown_name
from jobs.lake import paths
from jobs.lake.storage import resolve_uri
from jobs.query.staged_images import staged_images, with_pictures
from jobs.query.views import Views, quoted
from jobs.search.exact import METRICS, close_pairs, mahalanobis
from jobs.search.index import Index
from jobs.search.vectors import Vectors, dimension, is_image, row_of
from jobs.tables import catalog
from jobs.tables.delta import Snapshot
from jobs.tables.image_ids import IdSet, digests
from vae_core.scores.names import SCORES

log = logging.getLogger("latentlake")

RANKED = (*SCORES, "p_value")
MANY = 1_000_000  # embeddings, from which on an index is used where there is one
FEW = 1000  # ids that a statement may list
ENOUGH = 3  # images of a label, to say what is usual
# Null where an older release has made no row of the batch.
OF_ITS_BATCH = """
    (SELECT bool_and(b.calibration_valid) FROM batches b
     WHERE b.model = ? AND b.model_version = ? AND b.dataset = r.dataset AND b.job_id = r.job_id)
"""


class Lake(paths.LakePaths):
    """A lake to ask: a folder, or s3://BUCKET/PREFIX."""

    def __init__(self, uri: str) -> None:
        super().__init__(resolve_uri(uri))

    @functools.cached_property
    def _views(self) -> Views:
        return Views(self)

    def sql(self, statement: str, params: Sequence[Any] = (), **tables: pa.Table) -> pa.Table:
        """Return a SELECT (DuckDB) over all tables, as finished jobs published them.

        params: for the `?` in it. tables: further ones to ask, by name. Raises InputError with
        DuckDB's own words.
        """
        return self._views.sql(statement, params, tables)

    def columns(self, table: str) -> list[str]:
        """Of one of the tables that `sql` knows."""
        return self._views.columns(table)

    def pictures(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Staged images, uint8 (H, W, C), by image id; unknown ids are left out."""
        return staged_images(self, ids, self._views)

    def embeddings(self, model: str) -> Embeddings:
        """model: NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME.

        Raises InputError for an unknown model, version or alias.
        """
        return Embeddings(self, *catalog.resolve_model(self, model))


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What one version of a model made of the images of all datasets."""

    lake: Lake
    model: str
    version: str

    def anomalies(
        self,
        *,
        score: str | None = None,
        top: int = 20,
        night: str | None = None,
        label: str | None = None,
        dataset: str | None = None,
        flagged: bool = False,
    ) -> pa.Table:
        """Return the most anomalous images, worst first, each with whether its p-value is valid.

        score: one of RANKED; the bundle's decision score if None. p_value ranks ascending.
        flagged: only those that were flagged when their batch was embedded, with their evidence.
        Raises InputError for an unknown score.
        """
        score = score or str(read_about(self.lake, self.model, self.version)["decision_score"])
        if score not in RANKED:
            raise unknown_name("score", score, list(RANKED))
        self._require_dataset(dataset)
        table = "anomalies" if flagged else "embeddings"
        where, params = _where({**self._mine, "r.night": night, "r.dataset": dataset})
        of_label = "" if label is None else self._labelled("r")
        more = [] if label is None else [label]
        order = "ASC" if score == "p_value" else "DESC"
        shown = ["r.p_value"] if score != "p_value" else []
        if flagged:
            shown += ["r.q_value", "r.calibration_valid", "r.max_patch_y", "r.max_patch_x"]
            shown += ["r.max_patch_side", "r.latents", "r.batch"]
        else:
            shown += ["r.job_id"]
        # Rank on narrow columns first, then fetch the rest for the few that are shown.
        ranked = f"""
            SELECT r.image_id, r.dataset, r.night, r.{score}{"".join(f", {c}" for c in shown)}
            FROM {table} r WHERE {where} {of_label} AND r.{score} IS NOT NULL
            ORDER BY r.{score} {order}, r.image_id LIMIT ?
        """
        params += [*more, top]
        if not flagged:
            ranked = f"""
                SELECT r.* EXCLUDE (job_id), {OF_ITS_BATCH} AS calibration_valid
                FROM ({ranked}) r ORDER BY r.{score} {order}, r.image_id
            """
            params = [self.model, self.version, *params]
        return self._explained(self.lake.sql(ranked, params))

    def neighbours(
        self,
        of: str | Path | np.ndarray,
        *,
        k: int = 10,
        metric: str = "cosine",
        dataset: str | None = None,
        label: str | None = None,
        night: str | None = None,
        approximate: bool | None = None,
    ) -> pa.Table:
        """Return the k images nearest by embedding, nearest first.

        of: an image id (or a beginning of it that fits one image only), which is not its own
        neighbour; a Path of an image file; an embedding, (D,); or many at once, (Q, D), which are
        distinguished by the column `query`. dataset, label and night narrow down where to look.
        approximate: True to ask the index of `latentlake index`, False to search exactly; if None,
        exactly below a million embeddings, or where it is narrowed down, or without an index.
        Raises InputError for an unknown id, metric or dataset.
        """
        if metric not in METRICS:
            raise unknown_name("metric", metric, list(METRICS))
        if k < 1:
            raise InputError(f"k {k}: ask for at least one neighbour")
        narrowed = any(value is not None for value in (dataset, label, night))
        index = self._index(metric, approximate, narrowed)
        searched = self._vectors if index is None else index
        own = None
        if isinstance(of, str):
            row = row_of(searched.ids, of)
            own, vectors = searched.ids[row].as_py(), searched.vector(row)
        else:
            vectors = self._vectors_of(of)
        if index is not None:
            each = index.nearest(np.atleast_2d(vectors), k, own)
        else:
            allowed = self._allowed(dataset, label, night)
            if own is not None:
                allowed &= ~is_image(searched.ids, own)
            each = self._vectors.nearest(np.atleast_2d(vectors), k, metric, allowed)
        rows = np.concatenate([found for found, _ in each])
        columns = {"image_id": searched.ids.take(rows), "dataset": searched.datasets.take(rows)}
        if vectors.ndim == 2:
            columns["query"] = pa.array(np.repeat(np.arange(len(each)), [len(f) for f, _ in each]))
        columns[f"{metric}_distance"] = pa.array(np.concatenate([far for _, far in each]))
        return self._explained(pa.table(columns))

    def duplicates(
        self,
        threshold: float,
        *,
        metric: str = "cosine",
        dataset: str | None = None,
        top: int | None = None,
    ) -> pa.Table:
        """Pairs of images whose embeddings are at most `threshold` apart, nearest first; exact."""
        if metric not in METRICS:
            raise unknown_name("metric", metric, list(METRICS))
        vectors = self._vectors
        if threshold < 0:
            raise InputError(f"threshold {threshold}: no distance is below 0")
        kept = np.flatnonzero(self._allowed(dataset, None, None))
        pairs, far = close_pairs(vectors.matrix_ND[kept], threshold, metric, top)
        pairs = kept[pairs]
        found = {
            "image_id": vectors.ids.take(pairs[:, 0]),
            "dataset": vectors.datasets.take(pairs[:, 0]),
            "other_id": vectors.ids.take(pairs[:, 1]),
            "other_dataset": vectors.datasets.take(pairs[:, 1]),
            f"{metric}_distance": far,
        }
        return pa.table(found)

    def outliers_of(self, label: str, *, top: int = 20, dataset: str | None = None) -> pa.Table:
        """Images of a label that are least like the others of it, worst first.

        By Mahalanobis distance from the label's own mean: wrong labels come up. Raises InputError
        where the label has fewer than three embedded images.
        """
        vectors = self._vectors
        rows = np.flatnonzero(self._allowed(dataset, label, None))
        if len(rows) < ENOUGH:
            raise InputError(
                f"label {label!r} has {len(rows)} embedded images, and it takes {ENOUGH} to say "
                f"what is usual; known labels: {', '.join(self._labels()) or 'none'}"
            )
        far = mahalanobis(vectors.matrix_ND[rows])
        worst = np.argsort(-far, kind="stable")[:top]
        found = pa.table(
            {
                "image_id": vectors.ids.take(rows[worst]),
                "dataset": vectors.datasets.take(rows[worst]),
                "mahalanobis_distance": far[worst],
            }
        )
        return self._explained(found)

    def map(
        self,
        *,
        method: str = "pca",
        dataset: str | None = None,
        night: str | None = None,
        label: str | None = None,
        images: bool = False,
    ) -> pa.Table:
        """Embeddings as points (x, y), as `latentlake map` last laid them out, with their scores.

        images: with the pictures, as a column of structs with PNG `bytes`, which is what viewers of
        embeddings take; they are all in memory at once. Raises InputError where there is no map.
        """
        self._require_dataset(dataset)
        given = {**self._mine, "r.dataset": dataset, "r.method": method}
        where, params = _where({**given, "e.night": night})
        of_label = "" if label is None else self._labelled("r")
        found = self.lake.sql(
            f"""
            SELECT r.image_id, r.dataset, r.x, r.y, r.embeddings_version, {self._source},
                   e.night, e.p_value, {", ".join(f"e.{score}" for score in SCORES)}
            FROM maps r JOIN embeddings e USING (image_id, dataset, model, model_version)
            LEFT JOIN images i USING (image_id, dataset)
            WHERE {where} {of_label} ORDER BY r.dataset, r.image_id
            """,
            [*params, *([] if label is None else [label])],
        )
        self._require_map(method)
        return with_pictures(self.lake, found) if images else found

    def _require_map(self, method: str) -> None:
        """Warns of one of earlier embeddings."""
        where, params = _where({**self._mine, "r.method": method})
        statement = f"SELECT max(embeddings_version) AS v FROM maps r WHERE {where}"
        (version,) = self.lake.sql(statement, params)["v"].to_pylist()
        name = f"{self.model}@{self.version}"
        way = f"run latentlake map --model {name} --method {method}"
        if version is None:
            raise InputError(f"{name} has no map by {method} yet; {way}")
        if version != self._snapshot.version:
            log.warning("the map of %s is of earlier embeddings; %s", name, way)

    @property
    def _mine(self) -> dict[str, str]:
        return {"r.model": self.model, "r.model_version": self.version}

    def _require_dataset(self, dataset: str | None) -> None:
        if dataset is not None:
            catalog.require_dataset(self.lake, dataset)

    @property
    def _has_labels(self) -> bool:
        return "label" in self.lake.columns("images")

    def _labelled(self, row: str) -> str:
        self._require_labels()
        return (
            f"AND EXISTS (SELECT 1 FROM images i WHERE i.image_id = {row}.image_id "
            f"AND i.dataset = {row}.dataset AND CAST(i.label AS VARCHAR) = ?)"
        )

    def _require_labels(self) -> None:
        if not self._has_labels:
            raise InputError("the images have no column `label`; ask for them by SQL instead")

    def _labels(self) -> list[str]:
        if not self._has_labels:
            return []
        found = self.lake.sql("SELECT DISTINCT CAST(label AS VARCHAR) AS l FROM images ORDER BY 1")
        return [text for text in found["l"].to_pylist() if text is not None][:50]

    @property
    def _source(self) -> str:
        return f"{'i.label, ' if self._has_labels else ''}i.source_uri, i.source_row"

    def _explained(self, found: pa.Table) -> pa.Table:
        """Return the same rows, in order, with label and source."""
        numbered = found.append_column("place", pa.array(np.arange(len(found))))
        # Ids in the statement are compared with the files' statistics and bloom filters.
        few = ", ".join(quoted(i) for i in found["image_id"].to_pylist()[: FEW + 1])
        among = f"WHERE image_id IN ({few})" if 0 < len(found) <= FEW else ""
        statement = f"""
            SELECT f.*, {self._source} FROM found f
            LEFT JOIN (SELECT * FROM images {among}) i
            ON i.image_id = f.image_id AND i.dataset = f.dataset
            ORDER BY f.place
        """
        return self.lake.sql(statement, found=numbered).drop_columns(["place"])

    @functools.cached_property
    def _snapshot(self) -> Snapshot:
        return catalog.embeddings_snapshot(self.lake, self.model, self.version)

    @functools.cached_property
    def _vectors(self) -> Vectors:
        return Vectors.read(self._snapshot, self.version)

    @functools.cached_property
    def _indexes(self) -> dict[str, Index | None]:
        return {}

    def _index(self, metric: str, approximate: bool | None, narrowed: bool) -> Index | None:
        """Return the index to ask; None to search exactly."""
        if approximate is False or (approximate is None and narrowed):
            return None
        if approximate and narrowed:
            raise InputError("an index knows nothing of datasets, labels or nights; leave them out")
        rows = self._snapshot.partition_rows({"model_version": self.version})
        if approximate is None and rows < MANY:
            return None
        if metric not in self._indexes:
            found = Index.find(self.lake, self.model, self.version, metric, self._snapshot)
            self._indexes[metric] = found
        if approximate and self._indexes[metric] is None:
            raise InputError(
                f"{self.model}@{self.version} has no index by {metric} of its embeddings as they "
                f"are now; run latentlake index --model {self.model}@{self.version}"
            )
        return self._indexes[metric]

    def _allowed(self, dataset: str | None, label: str | None, night: str | None) -> np.ndarray:
        """(N,) of bool."""
        vectors = self._vectors
        allowed = np.ones(len(vectors.ids), bool)
        self._require_dataset(dataset)
        if dataset is not None:
            allowed &= pc.equal(vectors.datasets, dataset).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
        if night is not None:
            where, params = _where({**self._mine, "r.night": night})
            wanted = f"SELECT image_id, dataset FROM embeddings r WHERE {where}"
            allowed &= self._among(wanted, params)
        if label is not None:
            self._require_labels()
            wanted = "SELECT image_id, dataset FROM images WHERE CAST(label AS VARCHAR) = ?"
            allowed &= self._among(wanted, [label])
        return allowed

    def _among(self, statement: str, params: list[Any]) -> np.ndarray:
        """Which rows are among the answer's, by image and dataset."""
        vectors, found = self._vectors, self.lake.sql(statement, params)
        ids, among = digests(vectors.ids), np.zeros(len(vectors.ids), bool)
        for dataset in pc.unique(found["dataset"]).to_pylist():  # type: ignore[attr-defined]
            theirs = found["image_id"].filter(pc.equal(found["dataset"], dataset))  # type: ignore[attr-defined]
            here = pc.equal(vectors.datasets, dataset).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
            among |= here & IdSet([digests(theirs)]).has(ids)
        return among

    def _vectors_of(self, of: Path | np.ndarray) -> np.ndarray:
        dim = dimension(self._snapshot)
        vectors = self._of_file(of) if isinstance(of, Path) else of
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != dim:
            raise InputError(f"an embedding of {self.model} has {dim} numbers, not {vectors.shape}")
        if not vectors.size or not np.isfinite(vectors).all():
            raise InputError("give at least one embedding, of finite numbers")
        return vectors.astype(np.float32)

    def _of_file(self, path: Path) -> np.ndarray:
        from jobs.embed.score_files import score_files  # brings torch: only where it is needed

        return score_files(self.lake, f"{self.model}@{self.version}", [path]).mean_ND[0]


def _where(columns: dict[str, str | None]) -> tuple[str, list[str]]:
    given = {column: value for column, value in columns.items() if value is not None}
    return " AND ".join(f"{column} = ?" for column in given), list(given.values())

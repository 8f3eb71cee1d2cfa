"""Staged images by their ids, of whichever dataset has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jobs.imaging.decode import encode_png
from jobs.lake.paths import LakePaths
from jobs.query.views import Views, quoted
from jobs.schemas.dataset import image_shape_of
from jobs.tables import catalog

FEW = 1000  # ids that a statement may list


def staged_images(
    lake: LakePaths, ids: Sequence[str], views: Views | None = None
) -> dict[str, np.ndarray]:
    """uint8 (H, W, C) by image id; unknown ids are left out. views: of the lake, if open."""
    wanted = pa.table({"image_id": pa.array(ids, pa.string())})
    # Ids in the statement are compared with the files' statistics and bloom filters.
    among = f"WHERE image_id IN ({', '.join(map(quoted, ids))})" if 0 < len(ids) <= FEW else ""
    rows = (views or Views(lake)).sql(
        f"""
        SELECT image_id, dataset, image FROM (SELECT * FROM images {among})
        SEMI JOIN wanted USING (image_id)
        """,
        tables={"wanted": wanted},
    )
    datasets = set(rows["dataset"].to_pylist())
    shapes = {d: image_shape_of(catalog.images_snapshot(lake, d).schema) for d in datasets}
    return {
        row["image_id"]: np.frombuffer(row["image"], np.uint8).reshape(shapes[row["dataset"]])
        for row in rows.to_pylist()
    }


def with_pictures(lake: LakePaths, table: pa.Table) -> pa.Table:
    """Return the same rows with a column `image`, structs of PNG `bytes`, as viewers of embeddings
    take them; null for images that are not staged any more."""
    ids = table["image_id"].to_pylist()
    known = staged_images(lake, sorted(set(ids)))
    pictures = [{"bytes": encode_png(known[i])} if i in known else None for i in ids]
    kind = pa.struct([pa.field("bytes", pa.binary())])
    return table.append_column("image", pa.array(pictures, kind))

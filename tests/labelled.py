"""A source whose images have labels and marks of anomalies, good ones and useless ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers import image_bytes, labels


def write_labelled(path: Path, rows: range) -> None:
    data, told = image_bytes(rows), labels(rows)
    images = [{"bytes": one, "path": f"{row}.png"} for row, one in zip(rows, data, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(images, kind),
            "label": told,
            "same": ["one"] * len(told),
            "unlabelled": pa.nulls(len(told), pa.string()),
            "many": [f"{row}" for row in rows],
            "half": pa.array([label if n % 2 else None for n, label in enumerate(told)]),
            "is_anomaly": [label == 8 for label in told],
            "normal": [0] * len(told),
            "kind": [("good", "scratch")[label == 7] for label in told],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)

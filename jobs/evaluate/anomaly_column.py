"""The column that tells anomalies, as a user names it: COLUMN or COLUMN=VALUE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DEFAULT = "is_anomaly"
YES, NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclasses.dataclass(frozen=True)
class AnomalyColumn:
    """value: the one that makes an image anomalous; None for true, or what is not zero."""

    name: str
    value: str | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"

    def tells(self, kind: pa.DataType) -> bool:
        """Whether values of the type can be read."""
        plain = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
        textual = (pa.types.is_string, pa.types.is_large_string)
        return self.value is not None or any(is_such(kind) for is_such in (*plain, *textual))

    def read(self, column: pa.ChunkedArray) -> np.ndarray:
        """1: anomalous, 0: normal, NaN where the column does not tell, (N,)."""
        if self.value is not None:
            flags = [None if v is None else float(v == self.value) for v in texts(column)]
            return np.array(flags, np.float64)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            known = dict.fromkeys(YES, 1.0) | dict.fromkeys(NO, 0.0)
            lowered = (None if v is None else v.strip().lower() for v in column.to_pylist())
            return np.array([known.get(v) if v is not None else None for v in lowered], np.float64)
        numbers = column.cast(pa.float64()) if not pa.types.is_boolean(column.type) else column
        values = numbers.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.where(np.isnan(values), np.nan, (values != 0).astype(np.float64))


def anomaly_column(wanted: str, columns: Sequence[str]) -> AnomalyColumn | None:
    """Return what was requested; None where there is no such column."""
    if wanted in columns:
        return AnomalyColumn(wanted)
    name, mark, value = wanted.partition("=")
    return AnomalyColumn(name, value) if mark and name in columns else None


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """Values as text: 3 and 3.0 are 3, yes and no true and false."""
    return pc.cast(column, pa.string()).to_pylist()

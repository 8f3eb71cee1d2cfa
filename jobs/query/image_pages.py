"""A dataset's images page by page, so that a table of any size can be leafed through."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from jobs.errors import InputError
from jobs.query.api import Lake

CHOICES = 200  # values of a column to choose from


@dataclasses.dataclass(frozen=True)
class ImagePages:
    """Images of a dataset, or those of a split, a night or a label, in the order of its files.

    That order is fixed within a version of the table (DuckDB, "Order preservation"), so that pages
    have each image once; and neighbours in it are in one row group, which is what a page reads.
    """

    lake: Lake
    dataset: str
    split: str | None = None
    night: str | None = None
    label: str | None = None

    def count(self) -> int:
        """Count the images of all pages."""
        where, params = self._where
        found = self.lake.sql(f"SELECT count(*) AS n FROM images WHERE {where}", params)
        return found["n"].to_pylist()[0]

    def page(self, number: int, size: int) -> pa.Table:
        """Return the rows of a page, the first one being 0, without their pixels."""
        if number < 0 or size < 1:
            raise InputError(f"page {number} of {size} images: there is none")
        where, params = self._where
        label = "label" if self._has_labels else "NULL AS label"
        return self.lake.sql(
            f"""
            SELECT image_id, dataset, split, night, {label}, source_uri, source_row
            FROM images WHERE {where} LIMIT ? OFFSET ?
            """,
            [*params, size, number * size],
        )

    def choices(self, column: str) -> list[str]:
        """Return the values of split, night or label, in order; of a column with many the first
        ones."""
        if column == "label" and not self._has_labels:
            return []
        found = self.lake.sql(
            f"""
            SELECT DISTINCT CAST({column} AS VARCHAR) AS v FROM images
            WHERE dataset = ? AND {column} IS NOT NULL ORDER BY 1 LIMIT ?
            """,
            [self.dataset, CHOICES],
        )
        return found["v"].to_pylist()

    @property
    def _has_labels(self) -> bool:
        return "label" in self.lake.columns("images")

    @property
    def _where(self) -> tuple[str, list[Any]]:
        conditions = {
            "dataset": self.dataset,
            "split": self.split,
            "night": self.night,
            "CAST(label AS VARCHAR)": self.label,
        }
        given = {column: value for column, value in conditions.items() if value is not None}
        if self.label is not None and not self._has_labels:
            raise InputError("the images have no column `label`; leave it out")
        return " AND ".join(f"{column} = ?" for column in given), list(given.values())

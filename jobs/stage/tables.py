"""The tables of a dataset, by name and in commit order."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from jobs.lake.paths import LakePaths
from jobs.schemas.dataset import QUARANTINE, SOURCES, images_spec, type_named
from jobs.tables.delta import Table


class StageTables(NamedTuple):
    """In commit order: readers start from the last one."""

    quarantine: Table
    sources: Table
    images: Table


def stage_tables(lake: LakePaths, dataset: str, settings: dict[str, Any]) -> StageTables:
    """Name the tables of a dataset. settings: those of the plan."""
    passthrough = pa.schema(
        [pa.field(name, type_named(kind)) for name, kind in settings["passthrough"]]
    )
    look = {name: settings["target"][name] for name in ("fit", "background", "exact")}
    images = images_spec(tuple(settings["target"]["image_shape"]), passthrough, look)
    specs = (QUARANTINE, SOURCES, images)
    return StageTables(*(Table(lake.dataset(dataset, spec.name), spec) for spec in specs))

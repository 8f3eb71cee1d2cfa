"""The tables of a dataset, as staging commits them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jobs.lake.paths import LakePaths
from jobs.schemas.dataset import QUARANTINE, SOURCES, images_spec, type_named
from jobs.tables.delta import Table


def stage_tables(lake: LakePaths, dataset: str, settings: dict[str, Any]) -> list[Table]:
    """In commit order; settings are those of the plan."""
    passthrough = pa.schema(
        [pa.field(name, type_named(kind)) for name, kind in settings["passthrough"]]
    )
    look = {name: settings["target"][name] for name in ("fit", "background", "exact")}
    images = images_spec(tuple(settings["target"]["image_shape"]), passthrough, look)
    return [Table(lake.dataset(dataset, spec.name), spec) for spec in (QUARANTINE, SOURCES, images)]

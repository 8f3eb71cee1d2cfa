"""Every kind of table that a lake has, in one list."""

from __future__ import annotations

import pyarrow as pa

from jobs.schemas.catalog import ALIASES, DRIFT, EVALUATIONS, RUNS
from jobs.schemas.dataset import QUARANTINE, SOURCES, images_spec
from jobs.schemas.model import (
    ANOMALIES,
    BATCHES,
    MAPS,
    RECONSTRUCTIONS,
    embeddings_spec,
    evaluated_spec,
)
from jobs.schemas.spec import Owner, TableSpec

# Without passthrough columns, and of one latent dimension.
SPECS: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        QUARANTINE,
        SOURCES,
        images_spec((1, 1, 1), pa.schema([])),
        RECONSTRUCTIONS,
        ANOMALIES,
        BATCHES,
        embeddings_spec(1),
        MAPS,
        evaluated_spec(1),
        ALIASES,
        RUNS,
        EVALUATIONS,
        DRIFT,
    )
}


def tables_of(owner: Owner) -> list[str]:
    """Name the tables that each dataset, each model or the catalog has."""
    return [name for name, spec in SPECS.items() if spec.owner == owner]

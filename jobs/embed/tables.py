"""The tables that embed publishes of a model, by name and in commit order."""

from __future__ import annotations

from typing import NamedTuple

from jobs.lake.paths import LakePaths
from jobs.schemas.model import ANOMALIES, BATCHES, RECONSTRUCTIONS, embeddings_spec
from jobs.tables.delta import Table


class EmbedTables(NamedTuple):
    """In commit order: readers start from the last one."""

    reconstructions: Table
    anomalies: Table
    batches: Table
    embeddings: Table


def embed_tables(lake: LakePaths, model: str, latent_dim: int) -> EmbedTables:
    """Name the tables of a model whose embeddings have so many dimensions."""
    specs = (RECONSTRUCTIONS, ANOMALIES, BATCHES, embeddings_spec(latent_dim))
    return EmbedTables(*(Table(lake.model(model, spec.name), spec) for spec in specs))

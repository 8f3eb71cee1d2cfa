"""The tables that embed publishes of a model."""

from __future__ import annotations

from jobs.lake.paths import LakePaths
from jobs.schemas.model import MODEL_TABLES, embeddings_spec
from jobs.tables.delta import Table


def embed_tables(lake: LakePaths, model: str, latent_dim: int) -> list[Table]:
    """In commit order."""
    specs = (*MODEL_TABLES.values(), embeddings_spec(latent_dim))
    return [Table(lake.model(model, spec.name), spec) for spec in specs]

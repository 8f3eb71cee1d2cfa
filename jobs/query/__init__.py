"""Ask a lake: `from jobs.query import Lake`. Needs neither Ray nor torch."""

from jobs.query.api import Embeddings, Lake

__all__ = ["Embeddings", "Lake"]

"""The lake that `latentlake explore` shows, and what it keeps in memory of it."""

from __future__ import annotations

import threading

from jobs.errors import InputError
from jobs.query.api import Embeddings, Lake
from jobs.query.readonly_sql import GuardedViews
from jobs.tables import catalog

SQL_ROWS = 200
SQL_S = 20.0


class ExploreState:
    """Sessions and their threads share it."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.guarded = GuardedViews(lake)
        self._lock = threading.Lock()
        self._embeddings: tuple[tuple[str, str, int], Embeddings] | None = None

    def models(self) -> dict[str, str]:
        """NAME@VERSION of all versions that have embedded something, by what people call them."""
        found = {}
        for model in catalog.models(self.lake):
            named = catalog.aliases(self.lake, model)
            for version in catalog.bundle_versions(self.lake, model):
                if not self._has_embedded(model, version):
                    continue
                called = [alias for alias, target in named.items() if target == version]
                names = f" ({', '.join(called)})" if called else ""
                found[f"{model}@{version}{names}"] = f"{model}@{version}"
        # What production embeds with comes first.
        return dict(sorted(found.items(), key=lambda item: ("champion" not in item[0], item[0])))

    def _has_embedded(self, model: str, version: str) -> bool:
        try:
            catalog.embeddings_snapshot(self.lake, model, version)
        except InputError:
            return False
        return True

    def embeddings(self, reference: str) -> Embeddings:
        """Those of one version stay in memory, as they were published last: they may be large."""
        model, version = catalog.resolve_model(self.lake, reference)
        snapshot = catalog.embeddings_snapshot(self.lake, model, version)
        key = (model, version, snapshot.version)
        with self._lock:
            if self._embeddings is None or self._embeddings[0] != key:
                self._embeddings = (key, Embeddings(self.lake, model, version))
            return self._embeddings[1]

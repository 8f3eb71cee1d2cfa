"""Where everything lies in a lake. Pure names; nothing is read or written here."""

from __future__ import annotations

import dataclasses
import re

from jobs.errors import InputError
from jobs.lake.storage import join

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def valid_name(kind: str, name: str) -> str:
    """Raise InputError unless `name` can be a folder, a Parquet partition and a SQL value."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{kind} name {name!r} is not usable; use lower-case letters, digits, '-' and '_', "
            "at most 63, starting with a letter or digit"
        )
    return name


@dataclasses.dataclass(frozen=True)
class LakePaths:
    """The root URI under which everything of a deployment lives."""

    uri: str

    def dataset(self, dataset: str, table: str) -> str:
        """Locate a table of a dataset."""
        return join(self.uri, "datasets", dataset, table)

    def model(self, model: str, table: str) -> str:
        """Locate a table of a model."""
        return join(self.uri, "models", model, table)

    def bundle(self, model: str, version: str) -> str:
        """Locate a bundle's folder."""
        return join(self.uri, "models", model, "bundles", version)

    def catalog(self, table: str) -> str:
        """Locate a table of the catalog."""
        return join(self.uri, "catalog", table)

    def owned(self, owner: str, name: str, table: str) -> str:
        """Return a table of a dataset or a model. owner: dataset or model; name: of that one."""
        return self.dataset(name, table) if owner == "dataset" else self.model(name, table)

    def run(self, run_id: str) -> str:
        """Locate a run's folder: events, checkpoints, report."""
        return join(self.uri, "runs", run_id)

    def units(self, job_id: str) -> str:
        """Locate a job's records: plan, completions, commit."""
        return join(self.uri, "units", job_id)

    def name_of(self, table_uri: str) -> str:
        """Of a table in this lake, such as datasets/photos/images."""
        return table_uri.removeprefix(self.uri + "/")

    @property
    def datasets(self) -> str:
        """Locate the folder of all datasets."""
        return join(self.uri, "datasets")

    @property
    def models(self) -> str:
        """Locate the folder of all models."""
        return join(self.uri, "models")

    @property
    def all_units(self) -> str:
        """Locate the folder of all jobs' records."""
        return join(self.uri, "units")

"""Settings of maintenance."""

from __future__ import annotations

from pydantic import Field

from jobs.settings import Settings


class MaintainSettings(Settings):
    """Compaction of small shards, and removal of files that nothing needs."""

    dataset: str | None = Field(default=None, description="only this dataset; all if none")
    model: str | None = Field(default=None, description="only this model; all if none")
    compact: bool = Field(default=True, description="merge small shards")
    vacuum: bool = Field(default=True, description="remove files that no kept snapshot has")
    keep_days: float = Field(
        default=7.0, ge=0, description="keep snapshots that were the newest in the last days"
    )
    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")

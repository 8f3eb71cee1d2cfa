"""Which job, with which settings: all that another process needs to run it. Pure data."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from jobs.cluster.settings import RaySettings
from jobs.dispatch.registry import JOBS, kind_of, requested
from jobs.errors import InputError
from jobs.settings import Settings


class JobRequest(Settings):
    """One call of one of the jobs, wherever it runs."""

    kind: str
    settings: dict[str, Any]
    lake: str = Field(description="root URI of the lake")
    night: str
    ray: RaySettings = RaySettings()
    fresh: bool = Field(default=False, description="of a training: forget earlier attempts")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        try:
            requested(kind)
        except InputError as error:
            raise ValueError(str(error)) from error
        return kind

    @classmethod
    def of(
        cls, settings: Settings, lake: str, night: str, ray: RaySettings, *, fresh: bool = False
    ) -> JobRequest:
        """Ask for the job whose settings these are.

        Args:
            settings: of a job of `JOBS` that may be requested.
            lake: URI of its root.
            night: YYYY-MM-DD.
            ray: where it runs.
            fresh: of a training: forget earlier attempts.

        Returns:
            The request.
        """
        values = settings.model_dump(mode="json")
        return cls.model_validate(
            {"kind": kind_of(settings), "settings": values, "lake": lake, "night": night}
            | {"fresh": fresh, "ray": ray}
        )

    @property
    def target(self) -> str:
        """The dataset or model it makes, or all."""
        return self.settings[str(JOBS[self.kind].makes)] or "all"

"""How a job reaches Ray."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from jobs.settings import Settings


class RaySettings(Settings):
    """Where the work runs."""

    address: str | None = Field(
        default=None,
        description="http://HEAD:8265 to submit jobs to, HOST:6379 on a node; embedded if none",
    )
    wheel: str | None = Field(
        default=None, description="wheel of latentlake that jobs bring; the cluster's own if none"
    )
    cpus: int | None = Field(
        default=None, ge=1, description="CPUs of the embedded cluster; all if none"
    )
    autoscaling: bool = Field(default=False, description="the cluster adds nodes on demand")
    resource_timeout_s: float = Field(
        default=600.0, ge=0, description="how long to wait for an autoscaling cluster, in seconds"
    )

    @model_validator(mode="before")
    @classmethod
    def _local(cls, value: Any) -> Any:
        return {} if value == "local" else value

    @field_validator("address")
    @classmethod
    def _without_a_user(cls, address: str | None) -> str | None:
        if address is not None and "@" in address:
            raise ValueError(
                "the address has a user or a password in it, and an address is shown and kept; "
                "write it without, and give a token by the environment (RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN)"
            )
        return address

    @model_validator(mode="after")
    def _brought(self) -> RaySettings:
        if self.wheel is not None and not self.takes_jobs:
            raise ValueError("a wheel goes with jobs that are submitted, to http://HEAD:8265")
        return self

    @property
    def takes_jobs(self) -> bool:
        """Whether jobs are submitted, to run on a node of the cluster."""
        return (self.address or "").startswith(("http://", "https://"))

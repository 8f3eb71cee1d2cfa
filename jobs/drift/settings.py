"""Settings of a drift test."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from jobs.settings import Settings


class DriftRule(Settings):
    """When a night's images are taken to come from elsewhere than the model's own."""

    alpha: float = Field(
        default=0.05, gt=0, lt=1, description="chance of any false alarm in that many nights"
    )
    nights: int = Field(default=30, ge=1, description="that share alpha, in equal parts")
    max_images: int = Field(
        default=3000, ge=50, le=5000, description="a side at most: a sample, by id, of more"
    )
    least_images: int = Field(
        default=50, ge=10, description="a side; a night with fewer is not tested"
    )
    relabellings: int = Field(default=1999, ge=99, description="permutations of the tests")
    block_images: int = Field(
        default=16, ge=1, description="neighbours in a source file that are moved together"
    )
    block_by: str | None = Field(
        default=None, description="column whose equal values are moved together, such as camera"
    )
    seed: int = Field(default=0, ge=0, description="of samples and permutations")

    @model_validator(mode="before")
    @classmethod
    def _in_the_fields_word(cls, values: Any) -> Any:
        """Take `permutations` for `relabellings`, the key that configs had before."""
        if not isinstance(values, dict) or "permutations" not in values:
            return values
        if "relabellings" in values:
            raise ValueError("permutations and relabellings are the same: give one of them")
        others = {name: value for name, value in values.items() if name != "permutations"}
        return {**others, "relabellings": values["permutations"]}

    @property
    def level(self) -> float:
        """What one night may spend of alpha."""
        return self.alpha / self.nights

    @model_validator(mode="after")
    def _can_alarm(self) -> DriftRule:
        if 1 / (1 + self.relabellings) > self.level:
            raise ValueError(
                f"{self.relabellings} relabellings give no p-value below "
                f"{1 / (1 + self.relabellings):.2g}, and a night may spend {self.level:.2g}: no "
                f"drift could be found; set relabellings to at least {round(1 / self.level)}"
            )
        return self


class DriftSettings(DriftRule):
    """One call of drift."""

    dataset: str = Field(description="dataset whose arrivals are tested")
    model: str = Field(description="NAME, NAME@VERSION or NAME@ALIAS; the champion if only NAME")

"""Settings of staging."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from jobs.imaging.target import Fit
from jobs.settings import Positive, Settings
from jobs.sources.format_names import FormatName

Byte = Annotated[int, Field(ge=0, le=255)]


class StageSettings(Settings):
    """From a source to the images table."""

    source: str = Field(
        description="URI of Parquet, image files or WebDataset tars: a file, a folder or a pattern"
    )
    dataset: str = Field(description="name of the table of staged images")
    format: FormatName | None = Field(
        default=None, description="parquet, files or webdataset; found out if none"
    )
    image_column: str | None = Field(
        default=None, description="column with the images, a.b where nested; found out if none"
    )
    array_shape: tuple[Positive, ...] | None = Field(
        default=None, description="shape of flat pixel columns: H, W or H, W, C or C, H, W"
    )
    height: Positive = Field(default=64, description="height of the staged images, in pixels")
    width: Positive = Field(default=64, description="width of the staged images, in pixels")
    channels: int = Field(default=3, description="1 for grey, 3 for colour")
    fit: Fit = Field(
        default="crop", description="crop the middle, pad with the background, or stretch"
    )
    background: tuple[Byte, Byte, Byte] = Field(
        default=(255, 255, 255), description="RGB behind transparency and in padding"
    )
    max_pixels: Positive = Field(
        default=100_000_000, description="refuse images with more pixels, from their header"
    )
    exact: bool = Field(
        default=False,
        description="decode JPEG at full size always: slower, nearer by a grey value or two",
    )
    rows_per_unit: Positive | None = Field(
        default=None, description="source rows a unit; what fills a shard of 128 MiB if none"
    )
    max_refused: float = Field(
        default=0.05, ge=0, le=1, description="fail above this share of refused rows or files"
    )
    max_removed: float = Field(
        default=0.1, ge=0, le=1, description="fail above this share of images that left the source"
    )
    workers: int | None = Field(default=None, ge=1, description="workers; one a CPU if none")

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, value: int) -> int:
        if value not in (1, 3):
            raise ValueError("channels must be 1 or 3")
        return value

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels of staged images."""
        return (self.height, self.width, self.channels)

    @field_validator("array_shape")
    @classmethod
    def _two_or_three(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(value) not in (2, 3):
            raise ValueError("array_shape must be H, W or H, W, C or C, H, W")
        return value

    def preprocessing_of(self) -> dict[str, Any]:
        """Return what staged pixels depend on beside the bytes: one dataset, one look."""
        return {
            "image_shape": list(self.image_shape),
            "fit": self.fit,
            "background": list(self.background),
            "exact": self.exact,
        }

    def fingerprint_of(self) -> dict[str, Any]:
        """Return the settings that fix what rows a source gives."""
        names = ("format", "image_column", "array_shape", "max_pixels", "rows_per_unit")
        return {**self.preprocessing_of(), **self.model_dump(mode="json", include=set(names))}

"""What the ranks of a training are given."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.train.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """What the training workers are given: one picklable value."""

    lake: LakePaths
    job_id: str
    unit_id: str
    attempt: str
    model: str
    version: str
    dataset: str
    images_version: int
    image_shape: tuple[int, int, int]
    shard_uris: list[str]
    settings: dict[str, Any]

    @property
    def train_settings(self) -> TrainSettings:
        """Return the settings, validated."""
        return TrainSettings.model_validate(self.settings)

    @property
    def run_folder(self) -> str:
        """Events, TensorBoard files and checkpoints of all attempts."""
        return self.lake.run(f"{self.model}-{self.version}")

    @property
    def checkpoints(self) -> str:
        """Locate the folder of checkpoints."""
        return join(self.run_folder, "checkpoints")

    @property
    def events(self) -> str:
        """Locate the folder of events."""
        return join(self.run_folder, "events")

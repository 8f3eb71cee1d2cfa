"""Which job, with which settings: all that another process needs to run it. Pure data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.cluster.settings import RaySettings
from jobs.drift.settings import DriftSettings
from jobs.embed.settings import EmbedSettings
from jobs.evaluate.settings import EvaluateSettings
from jobs.maintain.settings import MaintainSettings
from jobs.promote.settings import PromoteSettings
from jobs.settings import Settings
from jobs.stage.settings import StageSettings
from jobs.train.settings import TrainSettings

AnySettings = (
    StageSettings
    | TrainSettings
    | EmbedSettings
    | EvaluateSettings
    | DriftSettings
    | PromoteSettings
    | MaintainSettings
)
KINDS: dict[str, type[AnySettings]] = {
    "stage": StageSettings,
    "train": TrainSettings,
    "embed": EmbedSettings,
    "evaluate": EvaluateSettings,
    "drift": DriftSettings,
    "promote": PromoteSettings,
    "maintain": MaintainSettings,
}


class JobRequest(Settings):
    """One call of one of the jobs, wherever it runs."""

    kind: Literal["stage", "train", "embed", "evaluate", "drift", "promote", "maintain"]
    settings: dict[str, Any]
    lake: str = Field(description="root URI of the lake")
    night: str
    ray: RaySettings = RaySettings()
    fresh: bool = Field(default=False, description="of a training: forget earlier attempts")

    @classmethod
    def of(
        cls, settings: AnySettings, lake: str, night: str, ray: RaySettings, *, fresh: bool = False
    ) -> JobRequest:
        """lake: its URI."""
        kind = next(name for name, known in KINDS.items() if known is type(settings))
        values = settings.model_dump(mode="json")
        return cls.model_validate(
            {"kind": kind, "settings": values, "lake": lake, "night": night, "fresh": fresh}
            | {"ray": ray}
        )

    @property
    def target(self) -> str:
        """The dataset or model it makes, or all."""
        name = "dataset" if self.kind in ("stage", "maintain") else "model"
        return self.settings[name] or "all"

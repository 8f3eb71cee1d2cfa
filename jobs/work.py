"""A job's work in plain words: what another process needs to do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.config import EmbedSettings, MaintainSettings, RaySettings, StageSettings, TrainSettings
from jobs.judge_config import DriftSettings, EvaluateSettings, PromoteSettings
from jobs.lake import Lake
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.job import Job

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


class Work(Settings):
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
    ) -> Work:
        """lake: its URI."""
        kind = next(name for name, known in KINDS.items() if known is type(settings))
        told = settings.model_dump(mode="json")
        return cls.model_validate(
            {"kind": kind, "settings": told, "lake": lake, "night": night, "fresh": fresh}
            | {"ray": ray}
        )

    @property
    def target(self) -> str:
        """The dataset or model it makes, or all."""
        name = "dataset" if self.kind in ("stage", "maintain") else "model"
        return self.settings[name] or "all"

    def job(self) -> Job:
        """The job itself; of maintain, which is several, there is none."""
        lake, told = Lake(self.lake), KINDS[self.kind].model_validate(self.settings)
        match told:
            case StageSettings():
                from jobs.stage import StageJob

                return StageJob(lake, told, self.night, self.ray)
            case TrainSettings():
                from jobs.train import TrainJob

                return TrainJob(lake, told, self.night, self.ray, fresh=self.fresh)
            case EmbedSettings():
                from jobs.embed import EmbedJob

                return EmbedJob(lake, told, self.night, self.ray)
            case EvaluateSettings():
                from jobs.evaluate import EvaluateJob

                return EvaluateJob(lake, told, self.night, self.ray)
            case DriftSettings():
                from jobs.drift import DriftJob

                return DriftJob(lake, told, self.night)
            case PromoteSettings():
                from jobs.promote import PromoteJob

                return PromoteJob(lake, told, self.night)
        raise AssertionError(f"{self.kind} is no job of one plan")

    def run(self, asked_by: str = "") -> dict[str, Any]:
        """Does it: here, or as a Ray job of a cluster that takes those.

        Returns a JobReport as a dict, or what maintain tells. asked_by: names who asks; asked
        again by the same, a Ray job that has ended well since is not run once more.
        """
        if self.ray.takes_jobs:
            from jobs.submit import run_on_cluster

            return run_on_cluster(self, asked_by)
        return self.run_here()

    def run_here(self) -> dict[str, Any]:
        if self.kind == "maintain":
            from jobs.maintain import maintain

            told = MaintainSettings.model_validate(self.settings)
            return maintain(Lake(self.lake), told, self.night, self.ray)
        from jobs import job

        return job.run(self.job()).to_dict()

"""A job's work in plain words: what another process needs to do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.config import EmbedSettings, MaintainSettings, RaySettings, StageSettings, TrainSettings
from jobs.lake import Lake
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.job import Job

AnySettings = StageSettings | TrainSettings | EmbedSettings | MaintainSettings
KINDS: dict[str, type[AnySettings]] = {
    "stage": StageSettings,
    "train": TrainSettings,
    "embed": EmbedSettings,
    "maintain": MaintainSettings,
}


class Work(Settings):
    """One call of one of the jobs, wherever it runs."""

    kind: Literal["stage", "train", "embed", "maintain"]
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
        name = "model" if self.kind in ("train", "embed") else "dataset"
        return self.settings[name] or "all"

    def job(self) -> Job:
        """The job itself; of maintain, which is several, there is none."""
        from jobs.embed import EmbedJob
        from jobs.stage import StageJob
        from jobs.train import TrainJob

        lake, told = Lake(self.lake), KINDS[self.kind].model_validate(self.settings)
        if isinstance(told, StageSettings):
            return StageJob(lake, told, self.night, self.ray)
        if isinstance(told, TrainSettings):
            return TrainJob(lake, told, self.night, self.ray, fresh=self.fresh)
        assert isinstance(told, EmbedSettings)
        return EmbedJob(lake, told, self.night, self.ray)

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

"""train: from an images snapshot to a bundle, by data-parallel workers of Ray Train."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

from typing_extensions import override

from jobs.bundles import aliases as bundles_aliases
from jobs.bundles.manifest import is_there
from jobs.cluster.settings import RaySettings
from jobs.engine.job import Job
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit
from jobs.engine.records import load_completions, save_completion
from jobs.errors import InputError, JobError
from jobs.hashing import digest
from jobs.lake.paths import LakePaths, valid_name
from jobs.lake.storage import delete_tree
from jobs.schemas.catalog import ALIASES
from jobs.schemas.dataset import PREPROCESSING, image_shape_of
from jobs.schemas.vectors import dimension_of
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, Table, open_snapshot
from jobs.train.settings import TrainSettings
from jobs.train.task import TrainTask

OWN = {"workers", "run"}  # settings that an unfinished training takes from whoever finishes it


class TrainJob(Job):
    """One call of `latentlake train`."""

    name = "train"
    rows_counted = "images_seen"
    stop_after_recovery = True

    def __init__(
        self,
        lake: LakePaths,
        settings: TrainSettings,
        night: str,
        ray_settings: RaySettings,
        *,
        fresh: bool = False,
    ) -> None:
        """fresh: what an earlier attempt got to is thrown away, not gone on from."""
        super().__init__(lake, valid_name("model", settings.model))
        self.fresh = fresh
        self.settings = settings
        self.night = night
        self.ray_settings = ray_settings

    @property
    @override
    def first_table(self) -> str:
        return self.lake.catalog(ALIASES.name)

    @property
    @override
    def relies_on(self) -> list[str]:
        return [self.lake.dataset(self.settings.dataset, "images")]

    @override
    def tables(self, plan: Plan) -> list[Table]:
        return [Table(self.first_table, ALIASES)]

    @override
    def plan(self) -> Plan:
        settings = self.settings
        images = catalog.images_snapshot(self.lake, settings.dataset, settings.images_version)
        try:
            settings.model_config_of(image_shape_of(images.schema)).check_closed_form()
        except ValueError as error:
            raise InputError(str(error)) from error
        fingerprint = digest(
            PREPROCESSING, settings.dataset, images.version, settings.fingerprint_of(), length=12
        )
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=fingerprint,
            night=self.night,
            base={"images": images.version},
            settings=settings.model_dump(mode="json"),
            units=self._units(fingerprint, images),
        )

    def _units(self, version: str, images: Snapshot) -> list[Unit]:
        settings = self.settings
        done = is_there(self.lake, self.target, version)
        current = catalog.aliases(self.lake, self.target).get(settings.alias)
        if done and (current == version or (current is not None and not settings.promote)):
            return []
        if not done:
            _require_splits(images, settings.dataset)
            self._require_room()
        inputs = {
            "version": version,
            "alias": settings.alias,
            "promote": settings.promote,
            # Moving an alias there and back again is another job each time.
            "moves": catalog.alias_moves(self.lake, self.target, settings.alias),
        }
        return [Unit.of(version, inputs)]

    def _require_room(self) -> None:
        """Raise InputError where no table of the model could take the new bundle's codes.

        Reported now, not by embed or evaluate when the training is paid for.
        """
        latent_dim = self.settings.latent_dim
        for table in ("embeddings", "evaluated"):
            table_snapshot = open_snapshot(self.lake.model(self.target, table))
            dimension = dimension_of(table_snapshot.schema) if table_snapshot is not None else None
            if dimension not in (None, latent_dim):
                what = "embeddings" if table == "embeddings" else "an evaluation"
                raise InputError(
                    f"model {self.target!r} has {what} of {dimension} latent dimensions, these "
                    f"settings have {latent_dim}: use another model name"
                )

    def idle(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        """Say that a finished fingerprint is not trained twice."""
        name = f"{self.target}@{plan.fingerprint}"
        return f"these settings and images are {name} already", {"version": plan.fingerprint}

    @override
    def owns(self, plan: Plan) -> bool:
        theirs = TrainSettings.model_validate(plan.settings)
        named = ("dataset", "alias", "promote")
        wanted = self.settings.images_version
        if wanted is not None and wanted != plan.base["images"]:
            return False
        return all(getattr(theirs, n) == getattr(self.settings, n) for n in named) and (
            theirs.fingerprint_of() == self.settings.fingerprint_of()
        )

    @override
    def execute(self, plan: Plan, units: Iterable[Unit]) -> None:
        (unit,) = units
        version = plan.fingerprint
        if is_there(self.lake, self.target, version):
            done = Completion(
                unit_id=unit.unit_id, attempt="kept", outputs=[], counts={}, seconds=0.0
            )
            save_completion(self.lake, plan.job_id, done)
            return
        order = self.order_of(plan, unit)
        if self.fresh:
            delete_tree(order.checkpoints)
        self.fit(order)
        if not load_completions(self.lake, plan.job_id, [unit.unit_id]):
            raise JobError(f"training of {self.target}@{version} ended without a bundle")

    def order_of(self, plan: Plan, unit: Unit) -> TrainTask:
        """Return what a new attempt at the plan's training is given."""
        images = catalog.images_snapshot(self.lake, plan.settings["dataset"], plan.base["images"])
        return TrainTask(
            lake=self.lake,
            job_id=plan.job_id,
            unit_id=unit.unit_id,
            attempt=uuid.uuid4().hex[:8],
            model=self.target,
            version=plan.fingerprint,
            dataset=plan.settings["dataset"],
            images_version=images.version,
            image_shape=image_shape_of(images.schema),
            shard_uris=images.file_uris(),
            # How it runs is this call's affair; what is trained is the plan's.
            settings=plan.settings | self.settings.model_dump(mode="json", include=OWN),
        )

    def fit(self, order: TrainTask) -> None:
        """Trains until the bundle is written and the unit completed."""
        from jobs.train.launch import fit  # brings Ray and torch: only where there is work

        fit(order, self.ray_settings)

    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        """Return the alias row: the bundle gets the alias if no bundle has it, or if settings say
        so."""
        (completion,) = completions.values()
        counts = {"version": plan.fingerprint, **completion.counts, **completion.details}
        settings = TrainSettings.model_validate(plan.settings)
        current = catalog.aliases(self.lake, self.target).get(settings.alias)
        if current is not None and not settings.promote:
            return CommitPlan(files={head.uri: []}, counts=counts)
        row = bundles_aliases.next_row(
            self.lake,
            head,
            plan,
            alias=settings.alias,
            version=plan.fingerprint,
            reason="promoted on request" if current is not None else "first bundle of the model",
            by=bundles_aliases.user(),
        )
        files = {head.uri: [row]}
        return CommitPlan(files=files, counts={**counts, "alias": settings.alias})


def _require_splits(images: Snapshot, dataset: str) -> None:
    rows = images.read(["split"])
    counts = Counter(rows["split"].to_pylist() if rows is not None else [])
    for split in ("train", "validation", "calibration"):
        if counts[split] == 0:
            raise InputError(
                f"dataset {dataset!r} has no images in its {split} split "
                f"({sum(counts.values())} images in all); stage more images"
            )

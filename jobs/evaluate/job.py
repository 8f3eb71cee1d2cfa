"""evaluate: how good a bundle is on the test split of a dataset, with intervals.

Units encode and score the test images, and as many training images as probe, PCA and nearest
neighbours take; the last unit sums up, once all others are done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from typing_extensions import override

from jobs.bundles.manifest import read_about, require_same_images
from jobs.cluster.pool_job import PoolJob
from jobs.cluster.settings import RaySettings
from jobs.cluster.worker import ImportedWorker, WorkerFactory, Workers
from jobs.datasets.split_sample import packed, sample_of
from jobs.engine.job import StalePlan
from jobs.engine.plan import CommitPlan, Completion, Plan, Unit, total_counts
from jobs.errors import InputError
from jobs.evaluate import results as evaluate_results
from jobs.evaluate.anomaly_column import DEFAULT, AnomalyColumn, anomaly_column
from jobs.evaluate.settings import EvaluateRule, EvaluateSettings
from jobs.hashing import digest
from jobs.lake.documents import json_column
from jobs.lake.paths import LakePaths
from jobs.lake.storage import create_or_keep, join
from jobs.schemas.catalog import EVALUATIONS
from jobs.schemas.dataset import PREPROCESSING, image_shape_of, passthrough_of
from jobs.schemas.model import evaluated_spec
from jobs.tables import catalog
from jobs.tables.delta import Snapshot, Table, open_snapshot

LAYOUT = 2  # raised when the same bundle and images would come out otherwise
TEST_ROWS = 1024  # images a unit: each is decoded once a posterior sample
TRAIN_ROWS = 8192  # which are only encoded
LABEL = "label"  # column for the probe where none is named


class EvaluateJob(PoolJob):
    """One call of `latentlake evaluate`."""

    name = "evaluate"
    rows_counted = "evaluated"

    def __init__(
        self, lake: LakePaths, settings: EvaluateSettings, night: str, ray_settings: RaySettings
    ) -> None:
        catalog.require_dataset(lake, settings.dataset)
        model, version = catalog.resolve_model(lake, settings.model)
        super().__init__(lake, model, night, ray_settings, settings.workers)
        self.settings = settings
        self.version = version
        self.about = read_about(lake, model, version)
        # Where it was calibrated, so that its p-values hold.
        on_gpu = self.about["scoring"].get("device") == "cuda"
        self.workers = Workers(settings.workers, device="auto" if on_gpu else "cpu")

    @property
    def partition(self) -> dict[str, str]:
        """Return the partition of the model's tables that it writes."""
        return {"model_version": self.version, "dataset": self.settings.dataset}

    @property
    def rule(self) -> dict[str, Any]:
        """What changes results."""
        return self.settings.model_dump(include=set(EvaluateRule.model_fields))

    @property
    @override
    def first_table(self) -> str:
        return self.lake.model(self.target, "evaluated")

    @property
    @override
    def relies_on(self) -> list[str]:
        read = {self.settings.dataset, self.about["data"]["dataset"]}
        return [self.first_table, *(self.lake.dataset(name, "images") for name in sorted(read))]

    @override
    def tables(self, plan: Plan) -> list[Table]:
        evaluated = evaluated_spec(plan.settings["latent_dim"])
        return [
            Table(self.first_table, evaluated),
            Table(self.lake.catalog(EVALUATIONS.name), EVALUATIONS),
        ]

    def plan(self) -> Plan:
        """Empty where these images have been evaluated by this rule, and by no other since."""
        images, evaluated = self._images(), open_snapshot(self.first_table)
        self._require_fit(images, evaluated)
        paths = evaluated.paths(self.partition) if evaluated is not None else []
        done = bool(paths) and evaluated is not None and self._is_done(evaluated, images)
        return Plan(
            job=self.name,
            target=self.target,
            fingerprint=self._fingerprint(),
            night=self.night,
            base={"images": images.version},
            settings={
                **self.partition,
                "model": self.target,
                "images_version": images.version,
                "latent_dim": self._latent_dim,
                "fingerprint": self._fingerprint(),
                "rule": self.rule,
                "held": paths,
                **({} if done else self._columns(images)),
            },
            units=[] if done else self._units(images),
            # By another rule in between, or back on this one, it is another job.
            key=[] if done else ["evaluated", evaluated.commits if evaluated is not None else 0],
        )

    @property
    def _latent_dim(self) -> int:
        return self.about["config"]["latent_dim"]

    def _require_fit(self, images: Snapshot, evaluated: Snapshot | None) -> None:
        """Raise InputError where the model cannot read the images, or the table take its rows."""
        name, shape = f"{self.target}@{self.version}", image_shape_of(images.schema)
        require_same_images(self.about, name, self.settings.dataset, shape)
        if evaluated is not None and evaluated.is_published:
            # Reported now, not when all is done: another latent dimension has no place in it.
            spec = evaluated_spec(self._latent_dim)
            Table(self.first_table, spec).require_same_schema(evaluated)

    def _images(self) -> Snapshot:
        return catalog.images_snapshot(
            self.lake, self.settings.dataset, self.settings.images_version
        )

    def _training_images(self) -> Snapshot:
        data = self.about["data"]
        return catalog.images_snapshot(self.lake, data["dataset"], data["images_version"])

    def _fingerprint(self) -> str:
        return digest(LAYOUT, PREPROCESSING, self.target, self.partition, self.rule)

    def _is_done(self, evaluated: Snapshot, images: Snapshot) -> bool:
        """Whether the rows that are published are of these images, by this rule."""
        rows = evaluated.read(["job_id"], self.partition)
        job_ids = set(rows["job_id"].to_pylist()) if rows is not None else set()
        runs = [run for run in catalog.runs(self.lake) if run["job_id"] in job_ids]
        config = json_column(runs[-1], "config") if runs else {}
        if config.get("fingerprint") != self._fingerprint():
            return False
        return _same_rows(images, config.get("images_version"))

    def _units(self, images: Snapshot) -> list[Unit]:
        dataset, fingerprint = self.settings.dataset, self._fingerprint()
        test = sample_of(images, "test", self.settings.max_images)
        if not len(test):
            raise InputError(
                f"dataset {dataset!r} has no images in its test split at version {images.version}; "
                "it is one image in twenty: stage more of them"
            )
        training = self._training_images()
        train = sample_of(training, "train", self.settings.train_images)
        versions = {"test": images.version, "train": training.version}
        return [
            Unit.of(fingerprint, {"split": split, "version": versions[split], "pieces": pieces})
            for split, sample, rows in (("test", test, TEST_ROWS), ("train", train, TRAIN_ROWS))
            for pieces in packed(sample.pieces, rows)
        ]

    def _columns(self, images: Snapshot) -> dict[str, Any]:
        """Which columns are read, and what is wrong with those that were requested."""
        training, data = self._training_images(), self.about["data"]
        dataset = self.settings.dataset
        label, label_problem = self._label(images.schema, training.schema)
        anomaly, anomaly_problem = self._anomaly(images.schema)
        has_label = label_problem is None
        return {
            "label": label,
            "label_problem": label_problem,
            "anomaly": str(anomaly) if anomaly else self.settings.anomaly,
            "anomaly_problem": anomaly_problem,
            "read": {
                "test": {
                    "dataset": dataset,
                    "images_version": images.version,
                    "label": label if has_label else None,
                    "anomaly": [anomaly.name, anomaly.value] if anomaly else None,
                },
                "train": {
                    "dataset": data["dataset"],
                    "images_version": training.version,
                    "label": label if has_label else None,
                    "anomaly": None,
                },
            },
        }

    def _label(self, images: pa.Schema, training: pa.Schema) -> tuple[str | None, str | None]:
        """Return the column of the probe, and why there can be none."""
        wanted, data = self.settings.label, self.about["data"]
        name = wanted or LABEL
        for dataset, schema in ((self.settings.dataset, images), (data["dataset"], training)):
            own = passthrough_of(schema)
            if name not in own.names:
                if wanted is None:
                    missing = f"dataset {dataset!r} has no column {name!r} (name one with --label)"
                    return None, missing
                return name, f"dataset {dataset!r} has no column {name!r} ({_known(own)})"
            if pa.types.is_nested(own.field(name).type):
                return name, f"column {name!r} is of lists or structs: no class label"
        return name, None

    def _anomaly(self, images: pa.Schema) -> tuple[AnomalyColumn | None, str | None]:
        """Return the column that tells anomalies, and why there can be none."""
        wanted, own = self.settings.anomaly, passthrough_of(images)
        simple = [field.name for field in own if not pa.types.is_nested(field.type)]
        found = anomaly_column(wanted or DEFAULT, simple)
        if found is not None and found.tells(own.field(found.name).type):
            return found, None
        if found is not None:
            kind = own.field(found.name).type
            return None, f"column {found.name!r} is of {kind}: write {found.name}=VALUE"
        dataset = self.settings.dataset
        if wanted is None:
            missing = f"dataset {dataset!r} has no column {DEFAULT!r} (name one with --anomaly)"
            return None, missing
        return None, f"dataset {dataset!r} has no column {wanted.split('=')[0]!r} ({_known(own)})"

    @override
    def idle(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        counts = {name: plan.settings[name] for name in ("model_version", "images_version")}
        name = f"{self.target}@{self.version}"
        return f"nothing to do: {name} has been evaluated on {self.settings.dataset}", counts

    def owns(self, plan: Plan) -> bool:
        """Also of earlier images: they are given up then."""
        return plan.fingerprint == self._fingerprint()

    def units(self, plan: Plan) -> Iterator[Unit]:
        """Of a plan that was left behind, only while its images are those that are requested."""
        if not _same_rows(self._images(), plan.settings["images_version"]):
            raise StalePlan("the images have changed")
        return iter(plan.units)

    @override
    def worker(self) -> WorkerFactory:
        return ImportedWorker("jobs.evaluate.worker", "EvaluateWorker")

    def settle(
        self, plan: Plan, completions: dict[str, Completion], head: Snapshot
    ) -> list[Unit] | CommitPlan:
        """Take the place of the earlier evaluation on the dataset."""
        if head.paths(self.partition) != plan.settings["held"]:
            raise StalePlan("another evaluation has been published in between")
        last = _last_unit(plan, completions)
        if last.unit_id not in completions:
            return [last]
        done = completions[last.unit_id]
        return CommitPlan(
            files={table.uri: done.outputs_of(table.spec.name) for table in self.tables(plan)},
            removed={head.uri: plan.settings["held"]},
            counts={
                **total_counts([*(completions[unit.unit_id] for unit in plan.units), done]),
                "model_version": plan.settings["model_version"],
                "images_version": plan.settings["images_version"],
            },
        )

    def post_commit(self, plan: Plan) -> None:
        """Write the evaluation beside the bundle, too."""
        rows = evaluate_results.of_job(self.lake, plan.job_id)
        chosen = plan.settings
        name = f"evaluation-{chosen['dataset']}-{chosen['images_version']}-{plan.fingerprint}.json"
        folder = self.lake.bundle(self.target, chosen["model_version"])
        body = json.dumps({"rule": chosen["rule"], "metrics": rows}, indent=1)
        create_or_keep(join(folder, name), body.encode())


def _known(columns: pa.Schema) -> str:
    return f"known: {', '.join(sorted(columns.names)) or 'none'}"


def _last_unit(plan: Plan, completions: dict[str, Completion]) -> Unit:
    """Make the unit that sums up what the others left."""
    done = [completions[unit.unit_id] for unit in plan.units]
    parts = {
        split: [one.details["part"] for one in done if one.details["split"] == split]
        for split in ("test", "train")
    }
    computed = sorted({one.details["compute"] for one in done})
    return Unit.of(plan.fingerprint, {"parts": parts, "computed": computed}, "summary")


def _same_rows(images: Snapshot, version: Any) -> bool:
    """Whether the snapshot holds the rows of that version: no commit since but of compaction.

    version: as a row or a plan tells it.
    """
    if not isinstance(version, int):
        return False
    if images.version <= version:
        return images.version == version
    return all(
        str(entry.get("job_id", "compact-")).startswith("compact-")
        for entry in images.history(down_to=version + 1)
    )

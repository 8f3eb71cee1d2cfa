"""The last unit of evaluate: every metric, with its interval, of what the other units left."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jobs.bundles import bundle as bundles
from jobs.engine.plan import Completion, JobContext, Unit
from jobs.evaluate.partials import floats, read_parts, vectors
from jobs.evaluate.pixels import HELD_AGAINST, Nearest, PixelRows, nearest_to_training, pca_right
from jobs.evaluate.probe import Labels, probe_problem, probe_right
from jobs.evaluate.results import MEANS, METRICS, few_note, ordered
from jobs.lake.paths import LakePaths
from jobs.schemas.catalog import EVALUATIONS
from jobs.schemas.model import evaluated_spec
from jobs.schemas.spec import MODEL_PARTITION
from jobs.tables import catalog
from jobs.tables.delta import Snapshot
from jobs.tables.shards import write_shard
from vae_core.families.base import scores_of
from vae_core.families.registry import family_of
from vae_core.stats.aggregate_posterior import (
    AggregateFit,
    active_units,
    aggregate_kl,
    kl_dimensions,
)
from vae_core.stats.bootstrap import Interval, Statistic, interval_of_two, intervals, mean, median
from vae_core.stats.conformal import share_below
from vae_core.stats.kolmogorov import ks_two_sample
from vae_core.stats.ranking import Ranking

CALIBRATED = 0.05  # the p-value below which a share of normal images is looked for
# Metrics that a family may not have.
OF_THE_MODEL = (
    "log_likelihood",
    "neg_elbo",
    "kl",
    "inference_gap",
    "aggregate_posterior_kl",
    "kl_dimension",
    "bits_per_dim",
)
READ_Z = (
    "z of how many of the images that are nearest to samples are test images, not training images: "
    "near 0 is fair, below -3 training images are copied"
)
BLURRED = "samples are means of the decoder, which are smooth and so nearer to any image"

Key = tuple[str, str | None]  # metric, and what it is of


def sum_up(
    lake: LakePaths, context: JobContext, bundle: bundles.Bundle, unit: Unit, attempt: str
) -> Completion:
    """Write the rows of both tables."""
    started = time.monotonic()
    torch.set_num_threads(1)  # sums in another order have other last digits
    settings, inputs = context.settings, unit.inputs
    dim = settings["latent_dim"]
    test, train = (
        read_parts(lake, context.job_id, inputs["parts"][split], dim) for split in ("test", "train")
    )
    summary = Summary(lake, settings, bundle, inputs["computed"], test, train)
    stamp = {"night": context.night, "job_id": context.job_id, "unit_id": unit.unit_id}
    about = {name: settings[name] for name in ("model", "model_version", "dataset")}
    about["images_version"] = settings["images_version"]
    rows = [{**about, **row, **stamp} for row in summary.rows()]
    partition = {name: settings[name] for name in MODEL_PARTITION}
    name, spec = f"{unit.unit_id}-{attempt}", evaluated_spec(dim)
    of_images = summary.evaluated(stamp, spec.file_schema)
    of_all = pa.Table.from_pylist(rows, schema=EVALUATIONS.schema)
    outputs = [
        write_shard(lake.model(settings["model"], spec.name), spec, of_images, name, partition),
        write_shard(lake.catalog(EVALUATIONS.name), EVALUATIONS, of_all, name),
    ]
    return Completion(
        unit_id=unit.unit_id,
        attempt=attempt,
        outputs=outputs,
        counts={"metrics": len(rows)},
        seconds=time.monotonic() - started,
        kind=unit.kind,
    )


@dataclasses.dataclass(frozen=True)
class Summary:
    """settings: the job's. computed: how the units scored, by fingerprint. test, train: their
    parts, by image id."""

    lake: LakePaths
    settings: dict[str, Any]
    bundle: bundles.Bundle
    computed: list[str]
    test: pa.Table
    train: pa.Table

    def evaluated(self, stamp: dict[str, str], schema: pa.Schema) -> pa.Table:
        """One row a test image."""
        count = len(self.test)
        right = self._probe[0]
        right = np.full(count, np.nan) if right is None else right
        known = self.test["log_likelihood"].is_valid().to_pylist()
        samples = self.settings["rule"]["samples"]
        columns = {name: self.test[name] for name in schema.names if name in self.test.schema.names}
        columns |= {
            "images_version": pa.repeat(self.settings["images_version"], count),
            "samples": pa.array([samples if one else None for one in known], pa.int32()),
            "probe_right": _truths(right),
            "is_anomaly": _truths(floats(self.test, "is_anomaly")),
            **{name: pa.repeat(value, count) for name, value in stamp.items()},
        }
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def rows(self) -> list[dict[str, Any]]:
        """Those of `evaluations`, without what all have in common."""
        statistics = dict(self._statistics())
        rule, images = self.settings["rule"], len(self.test)
        drawn = {name: rule[name] for name in ("resamples", "confidence", "seed")}
        found = intervals({key: one for key, (one, _) in statistics.items()}, images, **drawn)
        rows = []
        for key, (_, count) in statistics.items():
            if key[0] == "kl_dimension":
                each = enumerate(found[key].split())
                rows += [self._row((key[0], str(d)), one, count) for d, one in each]
            else:
                rows.append(self._row(key, found[key], count))
        return ordered(
            [*rows, *self._of_samples(drawn), *self._calibration(drawn), *self._absent()]
        )

    def _row(
        self,
        key: Key,
        value: Interval | float | None,
        images: int | None = None,
        note: str | None = None,
    ) -> dict[str, Any]:
        metric, of = key
        ends: dict[str, float | None] = dict.fromkeys(("low", "high", "confidence"))
        notes = [note or self._note(key)]
        if isinstance(value, Interval):
            low, high = _known(value.low), _known(value.high)
            known = self.settings["rule"]["confidence"] if low is not None else None
            ends = {"low": low, "high": high, "confidence": known}
            value = float(value.value)
            notes.append(few_note(images) if images is not None else None)
        return {
            "metric": metric,
            "of": of,
            "value": _known(value),
            **ends,
            "unit": METRICS[metric].unit,
            "better": METRICS[metric].better,
            "images": images,
            "note": "; ".join(filter(None, notes)) or None,
        }

    def _note(self, key: Key) -> str | None:
        rule, metric = self.settings["rule"], key[0]
        if metric == "log_likelihood":
            return f"importance-weighted bound of {rule['samples']} samples"
        if metric == "inference_gap":
            return f"the bound less the ELBO, of the same {rule['samples']} samples"
        if metric == "aggregate_posterior_kl":
            return f"too large by about {self._aggregate.bias:.2g}, being of few images"
        if metric == "probe_accuracy_pca":
            dim = min(self.settings["latent_dim"], *self._train_pixels.x_NP.shape)
            return f"PCA of {dim} dimensions, of {len(self._train_pixels):,} training images"
        if metric == "probe_accuracy":
            return f"fitted to {len(self.train):,} training images"
        if metric == "average_precision":
            share = np.nanmean(floats(self.test, "is_anomaly"))
            return f"{share:.3g} would be chance"
        return None

    def _statistics(self) -> Iterator[tuple[Key, tuple[Statistic, int]]]:
        """Yield what is bootstrapped, and of how many images."""
        images = len(self.test)
        for name in (*MEANS, "inference_gap"):
            values = floats(self.test, name)
            if not np.isnan(values).all():
                yield (name, None), (mean(values), _count(values))
        yield ("active_units", None), (active_units(self._codes), images)
        log_var = vectors(self.test, "embedding_log_var")
        if log_var is not None:
            yield ("aggregate_posterior_kl", None), (mean(self._aggregate.terms_N), images)
            yield ("kl_dimension", None), (mean(kl_dimensions(self._codes, log_var)), images)
        right, _ = self._probe
        label = self.settings["label"]
        if right is not None:
            yield ("probe_accuracy", label), (mean(right), _count(right))
            by_pca = pca_right(
                self._train_pixels,
                self._labels[0],
                self._read_pixels("test", self.test),
                self._labels[1],
                self.settings["latent_dim"],
            )
            yield ("probe_accuracy_pca", label), (mean(by_pca), _count(by_pca))
        anomalous = floats(self.test, "is_anomaly")
        if self._anomaly_problem is None:
            for score in self._scores:
                values = floats(self.test, score)
                ranking = Ranking.of(values, anomalous)
                count = len(ranking.images_N)
                yield ("auroc", score), (ranking.auroc, count)
                yield ("average_precision", score), (ranking.average_precision, count)

    def _of_samples(self, drawn: dict[str, Any]) -> list[dict[str, Any]]:
        near, samples = self._nearest, ("nearest_train_samples", None)
        heldout, z = ("nearest_train_heldout", None), ("memorisation", None)

        def of(key: Key, distances: np.ndarray, note: str | None) -> dict[str, Any]:
            count = len(distances)
            found = intervals({key: median(distances)}, count, **drawn)[key]
            return self._row(key, found, count, note)

        rows = [of(samples, near.samples_S, BLURRED)]
        problem = self._heldout_problem
        if problem is not None:
            return [*rows, *(self._row(key, None, note=problem) for key in (heldout, z))]
        count = len(near.heldout_M)
        return [*rows, of(heldout, near.heldout_M, None), self._row(z, near.z, count, READ_Z)]

    def _calibration(self, drawn: dict[str, Any]) -> list[dict[str, Any]]:
        """Whether test images score as calibration images do."""
        stored = self.bundle.calibration_scores
        scores = floats(self.test, self._decisive)
        scores = scores[~np.isnan(scores)]
        key = ("calibration_p", self._decisive)
        if not len(stored) or not len(scores):
            return [
                self._row((name, self._decisive), None, note="the bundle has no calibration images")
                for name in ("calibration_p", "calibration_share")
            ]
        p_value = ks_two_sample(scores, stored)[1]
        note = f"Kolmogorov-Smirnov, against {len(stored):,} calibration images"
        if self.computed != [self.bundle.about["scoring"]["compute_fingerprint"]]:
            note += "; scored otherwise than those were: on another kind of device, or torch"
        share = share_below(CALIBRATED, scores, stored)
        found = interval_of_two(share, len(scores), len(stored), **drawn)
        return [
            self._row(key, p_value, len(scores), note),
            self._row(("calibration_share", self._decisive), found, len(scores)),
        ]

    def _absent(self) -> list[dict[str, Any]]:
        """Rows that say why there is no number."""
        config = self.bundle.config
        absent = family_of(config).absent(config)
        lacking = [name for name in OF_THE_MODEL if name in absent]
        rows = [self._row((name, None), None, note=absent[name]) for name in lacking]
        label = self.settings["label"]
        if self._probe[1] is not None:
            names = ("probe_accuracy", "probe_accuracy_pca")
            rows += [self._row((name, label), None, note=self._probe[1]) for name in names]
        if self._anomaly_problem is not None:
            rows += [
                self._row((name, None), None, note=self._anomaly_problem)
                for name in ("auroc", "average_precision")
            ]
        return rows

    @property
    def _decisive(self) -> str:
        return self.bundle.about["decision_score"]

    @property
    def _scores(self) -> list[str]:
        config = self.bundle.config
        return scores_of(family_of(config), config)

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        found = vectors(self.test, "embedding")
        assert found is not None
        return found

    @functools.cached_property
    def _aggregate(self) -> AggregateFit:
        log_var = vectors(self.test, "embedding_log_var")
        assert log_var is not None
        return aggregate_kl(self._codes, log_var)

    @functools.cached_property
    def _labels(self) -> tuple[Labels, Labels]:
        return self.train["label"].to_pylist(), self.test["label"].to_pylist()

    @functools.cached_property
    def _probe(self) -> tuple[np.ndarray | None, str | None]:
        """Which test images are read right; else why there is no probe."""
        problem = self.settings["label_problem"]
        label = self.settings["label"]
        problem = problem or probe_problem(label, *self._labels)
        if problem is not None:
            return None, problem
        of_train = vectors(self.train, "embedding")
        assert of_train is not None
        return probe_right(of_train, self._labels[0], self._codes, self._labels[1]), None

    @functools.cached_property
    def _anomaly_problem(self) -> str | None:
        if self.settings["anomaly_problem"] is not None:
            return self.settings["anomaly_problem"]
        labels = floats(self.test, "is_anomaly")
        name = self.settings["anomaly"]
        kinds = set(labels[~np.isnan(labels)])
        if not kinds:
            return f"{name!r} tells of no test image whether it is anomalous: write COLUMN=VALUE"
        if len(kinds) == 1:
            which = "anomalous" if kinds == {1.0} else "normal"
            return f"by {name!r} all test images are {which}"
        return None

    def _images(self, split: str) -> Snapshot:
        read = self.settings["read"][split]
        return catalog.images_snapshot(self.lake, read["dataset"], read["images_version"])

    def _read_pixels(self, split: str, parts: pa.Table) -> PixelRows:
        return PixelRows.read(self._images(split), parts, self.bundle.config.image_shape)

    @functools.cached_property
    def _train_pixels(self) -> PixelRows:
        return self._read_pixels("train", self.train)

    @functools.cached_property
    def _heldout(self) -> PixelRows:
        """Test images of the snapshot that the model was trained on."""
        shape = self.bundle.config.image_shape
        return PixelRows.of_split(self._images("train"), "test", HELD_AGAINST, shape)

    @functools.cached_property
    def _heldout_problem(self) -> str | None:
        """Why no image can be compared with the training images; None where some can."""
        own, judged = (self.settings["read"][split]["dataset"] for split in ("train", "test"))
        if own != judged:
            return (
                f"only known of {own!r}, which the model was trained on: images of {judged!r} may "
                "differ from training images in other ways, too"
            )
        if not len(self._heldout):
            return "the snapshot that the model was trained on has no test images"
        return None

    @functools.cached_property
    def _nearest(self) -> Nearest:
        seed = self.settings["rule"]["seed"]
        return nearest_to_training(self.bundle, self._train_pixels, self._heldout, seed)


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _count(values: np.ndarray) -> int:
    return int((~np.isnan(values)).sum())


def _truths(values: np.ndarray) -> pa.Array:
    labels = [None if math.isnan(value) else bool(value) for value in values.tolist()]
    return pa.array(labels, pa.bool_())

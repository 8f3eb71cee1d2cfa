"""What has to be set before prefect is imported."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import tomllib
from pathlib import Path

from flows.login import NOWHERE, new_login, secured
from jobs import garbage_collection
from jobs.errors import InputError, LatentlakeError

TAG = "latentlake"  # of our runs
WORKER_ASKS_S = 2  # a worker of its server on the same machine; 10 by default
HEARTBEAT_S = 30  # of our runs; the shortest that Prefect has
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # Its migrations, the first time on a machine: 20 s were too few on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
# No child of ours imports what lies in the working directory: somebody's `h2.py`, or `jobs`.
NO_SURPRISES = {"PYTHONSAFEPATH": "1"}
WORKDIR = "LATENTLAKE_WORKDIR"  # where a deployment's runs go to, once they have begun
# A watch takes a run whose beats stay away for lost: nothing else may set how often they come.
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}


def prepare_prefect() -> None:
    """Without PREFECT_API_URL, Prefect runs a temporary server with a home of our own.

    The home lies in the temporary folder, is kept between runs (a new one costs the server's
    migrations), and the user's `~/.prefect` stays as it is.
    """
    garbage_collection.seldom()
    if folder := os.environ.pop(WORKDIR, None):
        os.chdir(folder)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ |= HEARTBEAT
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(private_folder() / "prefect"))
        if not _profile_has_server():
            os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
            login = os.environ.get("PREFECT_API_AUTH_STRING") or new_login()
            os.environ |= secured(login, NOWHERE)


def _profile_has_server() -> bool:
    """Whether the active profile of a home of the user's own names a server."""
    path = os.environ.get("PREFECT_PROFILES_PATH", f"{os.environ['PREFECT_HOME']}/profiles.toml")
    try:
        profile = tomllib.loads(Path(path).read_text())
        active = os.environ.get("PREFECT_PROFILE") or profile.get("active")
        return "PREFECT_API_URL" in profile.get("profiles", {}).get(active, {})
    except (OSError, tomllib.TOMLDecodeError):
        return False


def server_environment(url: str, home: Path, login: str) -> dict[str, str]:
    """Of a server of our own, its worker, and their runs. url: of its API; login: USER:PASSWORD."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        **QUIET,
        **HEARTBEAT,
        **NO_SURPRISES,
        **secured(login, url.removesuffix("/api")),
        "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_ASKS_S),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
    }


def private_folder() -> Path:
    """`latentlake-<user>` in the temporary folder, for this user alone. Raises InputError where it
    is not."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"latentlake-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if hasattr(os, "getuid"):
        _refuse_what_others_reach(folder)
    return folder


def _refuse_what_others_reach(folder: Path) -> None:
    """Raise InputError where another user made the folder, or may have put something into it."""
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not ours or found.st_mode & 0o022:
        raise InputError(
            f"{folder} is not yours alone, and what lies in it may be another user's; remove it, "
            "or name another temporary folder in TMPDIR"
        )
    folder.chmod(0o700)


class ToldInASentence(logging.Filter):
    """Takes the traceback off log records of errors that are the user's to mend."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out records of errors that are reported in a sentence."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, LatentlakeError):
            record.exc_info, record.exc_text = None, None
        return True


def quiet_prefect() -> None:
    """Call after prefect has set its logging up."""
    logging.getLogger("latentlake").setLevel(logging.INFO)
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(ToldInASentence())

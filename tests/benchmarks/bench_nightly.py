"""What orchestration costs: a night with nothing to do, and the demo's first night with Prefect.

Both are whole processes as a scheduler starts them. The demo's night is run as the flow, with a
Prefect server that is there already and nothing that judges, and as the same three jobs without
Prefect, one after the other in each round. How long the same job takes differs from run to run by
more than orchestration costs; so what a process does beside its jobs (imports, Prefect, plans) is
told too: what the flow has more of it, as a share of the work. Writes `.bench/nightly.json`.

    python -m tests.benchmarks.bench_nightly [--rounds 5] [--only idle]
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import yaml

from flows.demo import NIGHTS, night_rows, settings_of
from jobs.lake.paths import LakePaths
from tests.benchmarks.rounds import BENCH, Round, main
from tests.helpers import LATENTLAKE, free_port

FOLDER = BENCH / "nightly"
ENDING = contextlib.ExitStack()
JOBS = """
    import json, sys
    from jobs.engine import runner
    from jobs.embed.job import EmbedJob
    from jobs.lake.paths import LakePaths
    from flows.nightly.settings import load_nightly
    from jobs.stage.job import StageJob
    from jobs.train.job import TrainJob
    settings, night = load_nightly(sys.argv[1]), sys.argv[2]
    lake = LakePaths(settings.lake)
    kinds = ((StageJob, settings.stage), (TrainJob, settings.train), (EmbedJob, settings.embed))
    done = [runner.run(kind(lake, own, night, settings.ray)) for kind, own in kinds]
    print(json.dumps([{"seconds": report.seconds} for report in done]))
"""


def config_of(name: str, judged: bool = False) -> Path:
    """The demo's, with its first night's images, of a lake that is empty."""
    import pyarrow.parquet as pq

    root = FOLDER / name
    shutil.rmtree(root, ignore_errors=True)
    lake = LakePaths((root / "lake").as_uri())
    # What judges a night is work of its own, and none of orchestration.
    unjudged = {"evaluate": None, "gate": None, "drift": None, "report": judged}
    settings = settings_of(lake).model_copy(update={} if judged else unjudged)
    source = Path(settings.stage.source.removeprefix("file://"))
    source.mkdir(parents=True)
    pq.write_table(night_rows(0), source / "night-1.parquet")
    path = root / "nightly.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    return path


def seconds(command: list[str], **env: str) -> tuple[float, float]:
    """Of the whole process, and of the jobs in it, which it prints."""
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, env=os.environ | env)
    whole = time.perf_counter() - started
    return whole, sum(report["seconds"] for report in json.loads(done.stdout))


def nightly(config: Path, **env: str) -> tuple[float, float]:
    command = [str(LATENTLAKE), "nightly", "--config", str(config), "--night", NIGHTS[0], "--json"]
    return seconds(command, **env)


@functools.cache
def _done() -> Path:
    config = config_of("done", judged=True)
    nightly(config, PREFECT_HOME=str(FOLDER / "home"))
    return config


@functools.cache
def _server() -> str:
    """URL of a Prefect server that ends with this process."""
    port, home = free_port(), FOLDER / "server"
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ENDING.callback(process.wait)
    ENDING.callback(process.terminate)
    from flows.serve.serve import wait_for

    wait_for(url, process)
    return url


def idle_round() -> dict[str, float]:
    """A night with nothing to do: a temporary server of a kept home, a new one, one that runs."""
    config = _done()
    shutil.rmtree(FOLDER / "new-home", ignore_errors=True)
    return {
        "with a temporary server, s": nightly(config, PREFECT_HOME=str(FOLDER / "home"))[0],
        "the first time on a machine, s": nightly(config, PREFECT_HOME=str(FOLDER / "new-home"))[0],
        "with a server that runs, s": nightly(config, PREFECT_API_URL=_server())[0],
    }


def demo_round() -> dict[str, float]:
    """The demo's first night."""
    flow, flow_jobs = nightly(config_of("flow"), PREFECT_API_URL=_server())
    alone = config_of("jobs")
    command = [sys.executable, "-c", textwrap.dedent(JOBS), str(alone), NIGHTS[0]]
    process, jobs = seconds(command)
    return {
        "as a flow, s": flow,
        "the three jobs alone, s": process,
        "added by orchestration, whole processes": flow / process - 1.0,
        "beside its jobs, the flow, s": flow - flow_jobs,
        "beside its jobs, the process without, s": process - jobs,
        "added by orchestration, beside the jobs": (flow - flow_jobs - process + jobs) / jobs,
    }


SECTIONS: dict[str, Round] = {"idle": idle_round, "demo": demo_round}


if __name__ == "__main__":
    with ENDING:
        main("nightly", __doc__, SECTIONS)

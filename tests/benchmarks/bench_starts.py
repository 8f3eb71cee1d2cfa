"""What the start of jobs costs on one machine: workers that are forked, against Ray's own.

Each round runs the jobs of a small first night, of 300 images of 28×28, in a process of its own,
with the fork server and without, in an order that changes. Hardly any of it is work. Seconds of a
CPU are of the whole process tree, by a sample of /proc ten times a second. Writes
`.bench/starts.json`.

    python -m tests.benchmarks.bench_starts [--rounds 5]
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from tests.benchmarks.rounds import BENCH, main
from tests.helpers import ROOT, write_source

FOLDER = BENCH / "starts"
NIGHT = """
    import contextlib, json, sys, time
    from pathlib import Path
    from jobs.cluster import connect
    from jobs.engine import runner
    from jobs.embed.settings import EmbedSettings
    from jobs.cluster.settings import RaySettings
    from jobs.stage.settings import StageSettings
    from jobs.train.settings import TrainSettings
    from jobs.embed.job import EmbedJob
    from jobs.lake.paths import LakePaths
    from jobs.stage.job import StageJob
    from jobs.train.job import TrainJob

    folder, forked = Path(sys.argv[1]), sys.argv[2] == "forked"
    if not forked:
        connect._start_fork_server = lambda folder: None
        connect._forked_workers = contextlib.nullcontext
    lake, night, ray = LakePaths((folder / "lake").as_uri()), "2026-01-01", RaySettings(cpus=2)
    shape = {"height": 28, "width": 28, "channels": 1, "rows_per_unit": 150}
    tiny = {"epochs": 2, "latent_dim": 4, "network": {"kind": "mlp", "widths": [32]}}
    of = {"dataset": "d", "model": "m"}
    stage = StageSettings(source=str(folder / "source"), dataset="d", **shape)
    train = TrainSettings.model_validate(of | tiny | {"batch_size": 64, "workers": 2})
    jobs = ((StageJob, stage), (TrainJob, train), (EmbedJob, EmbedSettings(**of)))
    seconds = {}
    for kind, settings in jobs:
        began = time.monotonic()
        runner.run(kind(lake, settings, night, ray))
        seconds[kind.name] = time.monotonic() - began
    print(json.dumps(seconds))
"""
TICKS = os.sysconf("SC_CLK_TCK")
ORDER = itertools.cycle([("forked", "own"), ("own", "forked")])


def cpu_by_process(session: int) -> dict[tuple[str, str], float]:
    """Seconds of a CPU of each process of a session so far, by its number and start."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                told = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(told[3]) == session:
                found[entry.name, told[19]] = (int(told[11]) + int(told[12])) / TICKS
    return found


def night(how: str) -> dict[str, float]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_source(FOLDER / "source" / "a.parquet", range(300))
    began, seen = time.monotonic(), {}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NIGHT), str(FOLDER), how],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None:
        seen |= cpu_by_process(process.pid)
        time.sleep(0.1)
    assert process.returncode == 0
    assert process.stdout is not None
    told = {"whole": time.monotonic() - began, "cpu": sum(seen.values())}
    return told | json.loads(process.stdout.read())


def one_round() -> dict[str, float]:
    both = {how: night(how) for how in next(ORDER)}
    forked, other = both["forked"], both["own"]
    found = {f"forked: {name}, s": value for name, value in forked.items()}
    found |= {f"Ray's own: {name}, s": value for name, value in other.items()}
    return found | {f"{name}: forked / Ray's own": forked[name] / other[name] for name in forked}


if __name__ == "__main__":
    main("starts", __doc__ or "", {"night": one_round})

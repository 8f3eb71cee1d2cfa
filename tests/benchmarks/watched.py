"""A command as users run it: its seconds, what it tells, and the memory of its processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from pathlib import Path
from typing import Any

SAMPLE_S = 0.05


@dataclasses.dataclass
class Watched:
    """told: its JSON. driver_mib, worker_mib: the most that the driver and any one worker ever
    held, as the kernel keeps it (VmHWM: resident, with pages that others share)."""

    seconds: float
    told: dict[str, Any]
    driver_mib: float = 0.0
    worker_mib: float = 0.0


def run(command: list[str], *, memory: bool = False) -> Watched:
    """command: of latentlake, with --json. memory: watch it, which takes a little of a core."""
    driver = worker = 0.0
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while memory and process.poll() is None:
        driver = max(driver, high_water(process.pid))
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and b"ray::_UnitActor" in _read(entry / "cmdline"):
                worker = max(worker, high_water(int(entry.name)))
        time.sleep(SAMPLE_S)
    out, _ = process.communicate()
    assert process.returncode == 0
    return Watched(time.perf_counter() - started, json.loads(out), driver, worker)


def high_water(pid: int) -> float:
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"VmHWM:")) / 1024


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended while it was looked at

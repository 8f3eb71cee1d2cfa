"""The demo as a whole process: wall time, peak memory, images/s of each stage.

    make bench                       five runs on fresh lakes, medians
    ... bench_demo.py --runs 1       one

Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LATENTLAKE = Path(sys.executable).parent / "latentlake"


def resident_gib(group: int) -> float:
    """Resident memory of every process of a session, shared pages counted once each (PSS)."""
    total_kib = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) != group:
                continue
            text = (entry / "smaps_rollup").read_text()
        except (OSError, ProcessLookupError):
            continue
        total_kib += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return total_kib / 2**20


def measured(lake: Path) -> dict[str, Any]:
    """One run of the demo in a session of its own."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(LATENTLAKE), "demo", "--json", "--lake", str(lake)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    peak = [0.0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], resident_gib(process.pid))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    assert process.returncode == 0, "the demo failed"
    return json.loads(out) | {"wall_s": time.monotonic() - started, "peak_gib": peak[0]}


def line(name: str, unit: str, values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"| {name} | {unit} | {told(middle)} | {told(low)} – {told(high)} |"


def told(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    first, second = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="ll-bench-") as folder:
            first.append(measured(Path(folder) / "lake"))
            second.append(measured(Path(folder) / "lake"))
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{runs} runs, each on a fresh lake: median and range."
    )
    out = [
        machine,
        "",
        "| what | unit | median | range |",
        "|---|---|---|---|",
        line("whole process, first run", "s", [r["wall_s"] for r in first]),
        line("peak memory, all processes (PSS)", "GiB", [r["peak_gib"] for r in first]),
        line("whole process, second run (nothing to do)", "s", [r["wall_s"] for r in second]),
        line(
            "train, last epoch, two ranks",
            "images/s",
            [r["training"]["images_per_s"] for r in first],
        ),
    ]
    for index, stage in enumerate(first[0]["stages"]):
        title = f"{stage['job']} {stage['night']}, {stage['images']:,} images"
        for key, told in (
            ("images_per_s", "start-up included"),
            ("images_per_worker_s", "a worker at work"),
        ):
            values = [r["stages"][index][key] for r in first]
            out.append(line(f"{title}, {told}", "images/s", values))
    out += ["", "| score | AUROC of the unseen kind |", "|---|---|"]
    for name in first[0]["auroc"]:
        values = [r["auroc"][name] for r in first]
        told = "no such score" if values[0] is None else f"{statistics.median(values):.3f}"
        out.append(f"| {name} | {told} |")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()

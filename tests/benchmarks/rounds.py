"""Rounds of a benchmark: each compares side by side, what is told is medians of them."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.helpers import ROOT

BENCH = ROOT / ".bench"
Round = Callable[[], dict[str, float]]


def last_cores(count: int) -> list[int]:
    """Binds this process and its children to as many cores, the last ones."""
    cores = sorted(os.sched_getaffinity(0))[-count:]
    os.sched_setaffinity(0, cores)
    return cores


def median_of(rounds: int, action: Round) -> dict[str, Any]:
    """By name: median, least and greatest over the rounds."""
    found = [action() for _ in range(rounds)]
    return {
        name: {
            "median": statistics.median(values),
            "range": [min(values), max(values)],
        }
        for name in found[0]
        if (values := [one[name] for one in found])
    }


def main(report: str, about: str, sections: Mapping[str, Round]) -> None:
    """The command line of a benchmark on two cores; about: its docstring."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(sections), action="append")
    args = parser.parse_args()
    last_cores(2)
    torch.set_num_threads(1)
    (BENCH / report).mkdir(parents=True, exist_ok=True)
    tell(report, sections, args.only, args.rounds)


def write_pictures(path: Path, shape: tuple[int, int, int], count: int) -> None:
    """Parquet of soft random pictures as plain pixels, each another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape))
    kind = pa.binary(size)
    generator = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("image", kind)])) as writer:
        for start in range(0, count, 5000):
            here = min(5000, count - start)
            rough = generator.integers(0, 256, (here, 4, 4, shape[2]), dtype=np.uint8)
            pixels = rough.repeat(-(-shape[0] // 4), 1).repeat(-(-shape[1] // 4), 2)
            pixels = np.ascontiguousarray(pixels[:, : shape[0], : shape[1]]).reshape(here, size)
            # Each another picture.
            pixels[:, :4] = np.arange(start, start + here, dtype=np.uint32)[:, None].view(np.uint8)
            held = pa.Array.from_buffers(kind, here, [None, pa.py_buffer(pixels)])
            writer.write_table(pa.table({"image": held}))


def tell(
    report: str, sections: Mapping[str, Round], only: Sequence[str] | None, rounds: int
) -> None:
    """Runs the sections that are requested, prints them, and keeps them in `.bench/REPORT.json`."""
    path = BENCH / f"{report}.json"
    path.parent.mkdir(exist_ok=True)
    for name in only or sections:
        found = median_of(rounds, sections[name])
        held = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**held, name: found}, indent=1))
        for what, values in found.items():
            low, high = values["range"]
            sys.stdout.write(f"{what}: {values['median']:,.2f} ({low:,.2f} – {high:,.2f})\n")
            sys.stdout.flush()

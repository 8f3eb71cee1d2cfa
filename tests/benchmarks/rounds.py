"""Rounds of a benchmark: each compares side by side, what is told is medians of them."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def tell(
    report: str, sections: Mapping[str, Round], only: Sequence[str] | None, rounds: int
) -> None:
    """Runs the sections that are asked for, prints them, and keeps them in `.bench/REPORT.json`."""
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

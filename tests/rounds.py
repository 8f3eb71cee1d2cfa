"""How often the tests kill and simulate: a sample in `make test`, all of it in `make faults`."""

from __future__ import annotations

import os

ROUNDS = int(os.environ.get("LATENTLAKE_FAULT_ROUNDS", "1"))


def sampled(full: int, share: float = 0.5) -> int:
    """A simulation's nights: a share of them in the suite."""
    return full if ROUNDS > 1 else int(full * share)

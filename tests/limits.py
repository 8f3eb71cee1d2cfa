"""How long tests wait for something before they call it hanging, in one place.

No test fails because a machine is slow: these are about ten times what is usual on two quiet cores,
and what is to be quick is requested in a benchmark. A whole test may take as long as
`timeout` in pyproject.toml says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

COMMAND_S = 600.0  # one `latentlake` command, a training or a night included
DEMO_S = 1500.0  # two nights, of real size
RUN_S = 900.0  # a flow run from its request to its end
START_S = 300.0  # a server, a cluster or a node, until it answers
SOON_S = 180.0  # whatever takes a second or two
END_S = 120.0  # a process that was asked to end

T = TypeVar("T")


def until(found: Callable[[], T], seconds: float = SOON_S, every_s: float = 0.5) -> T:
    """Waits for a true answer, and gives it back."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: it hangs"
        time.sleep(every_s)
    return value

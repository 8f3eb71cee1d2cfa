"""How often Python looks for cycles."""

from __future__ import annotations

import gc


def seldom() -> None:
    """Of a process that mostly imports, and makes few cycles: every 50,000 objects.

    Every 700, as by default, it walks through the same modules again and again.
    """
    gc.set_threshold(50_000, 20, 20)

"""What people are shown of text that anybody may have written."""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, and the marks that turn the direction of what follows.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
INSTEAD = "\N{REPLACEMENT CHARACTER}"


def shown(text: str) -> str:
    """Without what would make a terminal do something: a label, a file's name, may hold it."""
    return CONTROLS.sub(INSTEAD, text)

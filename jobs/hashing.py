"""Names that derive from what they name."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(*parts: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the sha256 of the parts' canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]

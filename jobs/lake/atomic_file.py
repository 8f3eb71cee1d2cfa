"""Files on local disk that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
import weakref
from pathlib import Path

from jobs.errors import AlreadyThere
from jobs.lake.root_guard import require_held


class Draft:
    """A local file that is written beside its place, and appears there whole or not at all.

    What is given up goes with the object; of a killed process, vacuum takes it away.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.exists():
            require_held(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._discard = weakref.finalize(self, self.temporary.unlink, missing_ok=True)

    def publish(self) -> None:
        """Call it once the temporary file is closed. Raises AlreadyThere; the old file stays."""
        self._sync()
        try:
            os.link(self.temporary, self.path)  # unlike rename, fails where the name is taken
        except FileExistsError as error:
            raise AlreadyThere(str(self.path)) from error
        finally:
            self._discard()

    def replace(self) -> None:
        """Do the same in the place of an old file."""
        self._sync()
        self.temporary.replace(self.path)

    def _sync(self) -> None:
        handle = os.open(self.temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

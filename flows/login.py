"""Who may speak to a Prefect server that we start: whoever has its authentication string.

Prefect's API answers every web page that its user opens, and its worker runs what a deployment
says. So no server of ours is without one. The other two lines hold where it should have leaked to a
page: only the server's own page may read answers, and what changes something needs a token that a
foreign page cannot read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from jobs.errors import InputError

USER = "latentlake"
FILE = "login"
NOWHERE = "https://nowhere.invalid"  # the origin of a server that has no page


def new_login() -> str:
    """USER:PASSWORD, as Prefect takes it."""
    return f"{USER}:{secrets.token_urlsafe(32)}"


def login_of(home: Path) -> str:
    """Return the login of a server's home, both made where they are not there; for its user's eyes
    alone.

    Raises InputError where the file is not ours alone, or not what was written.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / FILE
    if not path.is_symlink() and not path.exists():
        # Whole from the first moment on: another server may start beside this one.
        opened, name = tempfile.mkstemp(prefix=f"{FILE}-", dir=home)
        with os.fdopen(opened, "w") as file:
            file.write(new_login())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
        Path(name).unlink()
    return _read(path)


def _read(path: Path) -> str:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise InputError(f"{path} should hold the server's login: {error.strerror}") from error
    with os.fdopen(opened) as file:
        status = os.fstat(file.fileno())
        login = file.read().strip()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InputError(
            f"{path} holds the server's login, and others may read or change it; remove it, and "
            "another is made"
        )
    user, _, password = login.partition(":")
    if not user or len(password) < 16:
        raise InputError(f"{path} is no USER:PASSWORD of 16 characters or more; remove it")
    return login


def secured(login: str, origin: str) -> dict[str, str]:
    """Environment of a server and of all that speak to it; origin: of its page."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
    }

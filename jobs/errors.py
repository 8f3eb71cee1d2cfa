"""What can go wrong, sorted by who can mend it. The command line turns these into exit codes."""

from __future__ import annotations


class LatentlakeError(Exception):
    """Base of all errors that are reported in a sentence, without a traceback."""

    exit_code = 1


class InputError(LatentlakeError):
    """A source, a name, a setting or a credential that the user has to change."""

    exit_code = 2


class StorageError(LatentlakeError):
    """Storage did not answer, or not as it should; trying again later may help."""


class ClusterError(LatentlakeError):
    """A cluster did not answer, or lost what it was doing; trying again later may help."""


class JobError(LatentlakeError):
    """A job ended without publishing anything."""


class RejectedInput(Exception):
    """An input that cannot be staged, with its reason code; goes to quarantine."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def unknown_name(kind: str, name: str, known: list[str], hint: str = "") -> InputError:
    """Return the error for a name that is not there, listing those that are."""
    listed = ", ".join(sorted(known)) if known else f"none yet{hint}"
    return InputError(f"unknown {kind} {name!r}; known: {listed}")


class AlreadyThere(Exception):
    """A create-only put found an object of that name."""

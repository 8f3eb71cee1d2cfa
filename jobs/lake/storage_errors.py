"""What an exception of a disk or a store means: who can mend it, and whether it may pass."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from jobs.errors import InputError, LatentlakeError, StorageError
from jobs.lake.uri import without_keys

DENIED = (
    "accessdenied",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "forbidden",
    "unable to locate credentials",
    "nocredentials",
    "permission denied",
    "not a directory",
    "read-only file system",
    "access key id",
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # deltalake paints its errors
NO_BUCKET = ("nosuchbucket", "bucket does not exist")
# What an S3 client may say when the store did not answer; such faults pass.
TRANSIENT = (
    "timeout",
    "timed out",
    "connect",
    "slowdown",
    "serviceunavailable",
    "internalerror",
    "please reduce your request rate",
    "reset",
    "incomplete",
    "error sending request",
    # An answer to HEAD has no body, and so no error code: only the words of its status.
    "service unavailable",
    "internal server error",
    "bad gateway",
    "gateway timeout",
    "payload is not completed",  # the answer ended early, says s3fs
    "response body error",  # and so does deltalake
    "conditionalrequestconflict",  # another put-if-absent of the same name is under way
)


def explain(error: BaseException, uri: str, verb: str) -> LatentlakeError:
    """Return the error a user reads for a storage exception: what, where, what to do."""
    text = " ".join(str(e) or type(e).__name__ for e in chain(error)).lower()
    reason = COLOURS.sub("", str(error) or type(error).__name__)
    reason = " ".join(without_keys(reason).split())[:300]
    if any(word in text for word in NO_BUCKET):
        return InputError(f"cannot {verb} {uri}: the bucket does not exist")
    if isinstance(error, PermissionError) or any(word in text for word in DENIED):
        return InputError(
            f"cannot {verb} {uri}: access denied ({reason}); check the path, its permissions, and "
            "for S3 the credentials in the environment or the AWS files"
        )
    if isinstance(error, FileNotFoundError):
        if verb == "write":
            message = f"cannot write {uri}: the folder that it belongs to has gone"
            return StorageError(
                f"{message}; look whether the disk is still there, and run it again"
            )
        return InputError(f"cannot {verb} {uri}: it does not exist")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    is_remote = endpoint and not uri.startswith("file:")
    where = f" (endpoint {without_keys(endpoint)})" if is_remote else ""
    return StorageError(f"cannot {verb} {uri}{where}: {reason}")


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def is_transient(error: BaseException) -> bool:
    """Whether the error may pass when the same is tried again."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    text = " ".join(f"{type(e).__name__} {e}" for e in chain(error)).lower()
    return any(word in text for word in TRANSIENT) and not any(word in text for word in DENIED)


def raise_if_no_bucket(error: OSError) -> None:
    """Raise for a missing bucket, a mistake; an object that is not there is an answer."""
    if any(word in str(error).lower() for word in NO_BUCKET):
        raise error

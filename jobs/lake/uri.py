"""URIs as people write them, and names that lie in a folder.

No credential is part of a URI: it is shown, logged and kept. No name in a lake leads out of it,
whoever wrote it there.
"""

from __future__ import annotations

import logging
import re

from jobs.errors import InputError

# Of Azure, abfs://CONTAINER@ACCOUNT names a place; only CONTAINER:KEY@ACCOUNT would hold a key.
AT_IS_A_PLACE = ("az", "abfs", "abfss")


# Percent-encoding and what ends a URI's path would make another path of it, a scheme another place.
# (S3's client takes * and [ for a pattern.)
_NO_NAME = re.compile(r"[%?#*\[\\\x00-\x1f\x7f]|^[A-Za-z][A-Za-z0-9+.-]*:")
_PLAIN = re.compile(r"[A-Za-z0-9_=@+-][A-Za-z0-9_=@+.-]*")


def is_inner(path: str) -> bool:
    """Whether a path, relative to a folder, lies in it, however it is spelt."""
    return not _NO_NAME.search(path) and not any(
        part in ("", ".", "..") for part in path.split("/")
    )


def is_plain(name: str) -> bool:
    """Whether a name is one file's or folder's: ASCII letters, digits and few marks."""
    return _PLAIN.fullmatch(name) is not None


# What a query of a URL gives a key, a token or a signature as.
_SIGNED = (
    r"(?:[a-z0-9_.~-]*(?:signature|credential|token|secret|password|passwd|api[_-]?key|"
    r"account[_-]?key|key-pair-id|access[_-]?key[_-]?(?:id)?)|sig|pwd|policy)"
)
_IN_A_QUERY = re.compile(rf"[?&;#]{_SIGNED}=[^&;\s'\"<>#]", re.IGNORECASE)
_KEY = re.compile(rf"([?&;#](?:{_SIGNED}|key|auth)=)[^&;\s'\"<>#]+", re.IGNORECASE)
# A secret key of S3's may have a slash in it; of Azure, the name before @ is a place. Bounded,
# since each message is looked through.
_USER = re.compile(
    r"(s3://)[^/\s'\"<>?#:]{0,300}:[^\s'\"<>]{0,300}@"
    r"|((?:az|abfss?)://)[^/\s'\"<>?#:]{0,300}:[^/\s'\"<>?#]{0,300}@"
    r"|((?<![a-z])(?!az:|abfss?:)[a-z][a-z0-9+.-]{1,20}://)[^/\s'\"<>?#]{1,300}@",
    re.IGNORECASE,
)


def without_keys(text: str) -> str:
    """Return a message without the passwords and signatures of the URLs in it, whoever wrote it."""
    return _KEY.sub(r"\1…", _USER.sub(r"\1\2\3…@", text)) if "://" in text else text


class WithoutKeys(logging.Filter):
    """Of a logger: what it passes on has no key in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Cut keys and signatures out of a log record."""
        message = record.getMessage()
        record.msg, record.args = without_keys(message), ()
        return True


def refuse_credentials(uri: str) -> None:
    """Raise InputError for a URI with a user or a key in it, and does not repeat them."""
    scheme, mark, rest = uri.strip().partition("://")
    scheme = scheme.lower()
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = host.rpartition("@")
    if not mark or scheme == "file":
        found = False
    elif scheme in AT_IS_A_PLACE:
        found = ":" in user
    elif scheme == "s3":
        # A secret key may have a slash, and the bucket then comes after it. No name of a bucket has
        # a colon, apart from an access point's.
        found = bool(at) or (":" in host and not host.startswith("arn:"))
    else:
        found = bool(at)
    if mark and scheme not in ("s3", "file") and not found and _IN_A_QUERY.search(uri):
        raise InputError(
            f"{scheme}://…: this URI is signed, or has a key in it, and a URI is shown and kept; "
            "name the store itself (s3://, gs://, abfs://) and give credentials by the "
            "environment, or fetch the file first"
        )
    if found:
        raise InputError(
            f"{scheme}://…: this URI has a user or a key in it, and a URI is shown and kept; write "
            "it without, and give credentials by the environment (for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or by a profile of the AWS files (AWS_PROFILE)"
        )

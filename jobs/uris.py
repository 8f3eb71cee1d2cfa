"""URIs as people write them. No credential is part of one: a URI is shown, logged and kept."""

from __future__ import annotations

import re

from jobs.errors import InputError

# Of Azure, abfs://CONTAINER@ACCOUNT names a place; only CONTAINER:KEY@ACCOUNT would hold a key.
AT_IS_A_PLACE = ("az", "abfs", "abfss")


def refuse_credentials(uri: str) -> None:
    """Raises InputError for a URI with a user or a key in it, and does not repeat them."""
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
    if found:
        raise InputError(
            f"{scheme}://…: this URI has a user or a key in it, and a URI is shown and kept; write "
            "it without, and give credentials by the environment (for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or by a profile of the AWS files (AWS_PROFILE)"
        )

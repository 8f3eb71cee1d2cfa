"""Schemas as the logs of tables have them."""

from __future__ import annotations

import pyarrow as pa
from deltalake import Schema

from jobs.lake.documents import damaged
from jobs.schemas.dataset import TableSpec


def logged_schema(spec: TableSpec) -> pa.Schema:
    """Return the schema as Delta's log keeps it."""
    # Delta has no fixed-size binary: the size lives in the field's metadata and in the files.
    return pa.schema(
        [
            f.with_type(pa.binary()) if pa.types.is_fixed_size_binary(f.type) else f
            for f in spec.schema
        ]
    )


def parsed_schema(text: str, uri: str) -> Schema:
    """Read a schema from a log. Raises InputError where it is damaged."""
    try:
        return Schema.from_json(text)
    except Exception as error:  # deltalake has no class for it
        message = f"a schema that {error}"
        raise damaged(f"a commit record for {uri}", message) from error

"""The forms of the flows: what their schema refuses before a run is made."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.nightly.flow import nightly
from flows.nightly.manual_flows import backfill, embed, maintain, train

FLOWS = [nightly, train, embed, backfill, maintain]


def takes(flow: Any, **told: str) -> bool:
    """By Prefect's own check, as its server makes it of what a form sends."""
    schema = parameter_schema(flow).model_dump()
    try:
        validate({"config": "nightly.yaml", **told}, schema, raise_on_error=True)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_credential_is_no_parameter(flow: Any) -> None:
    for name in ("config", "lake"):
        for uri in ("s3://KEY:SECRET@bucket/p", "S3://KEY@bucket/p", "https://me:pw@host/p"):
            assert not takes(flow, **{name: uri}), uri
        for uri in (
            "./lake",
            "s3://bucket/a:b@c",
            "s3://arn:aws:s3:::x/p",
            "C:/lake",
            "https://h/p",
        ):
            assert takes(flow, **{name: uri}), uri


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_night_is_a_date(flow: Any) -> None:
    assert takes(flow, night="2026-11-21")
    assert not takes(flow, night="yesterday")
    assert not takes(flow, night="2026-13-01")

"""What prefect is told before it is imported."""

from __future__ import annotations

import os

import pytest

from flows.environment import prepare_prefect


def test_a_user_does_not_set_how_often_a_run_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of a server would take a run that is heard of less often for lost."""
    own = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "300", "PREFECT_LOGGING_LEVEL": "DEBUG"}
    monkeypatch.setattr(os, "environ", os.environ.copy() | own)
    prepare_prefect()
    assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "DEBUG"

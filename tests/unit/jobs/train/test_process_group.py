"""The interface that Gloo is told."""

from __future__ import annotations

import sys

import pytest

from jobs.train.process_group import interface_of


@pytest.mark.skipif(sys.platform != "linux", reason="loopback has another name elsewhere")
def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None  # of documentation, nobody's

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    torch.set_num_threads(1)


# Of lakes that are trained, evaluated or reported before a test begins.
TRAINED = {"trained_once", "judged_once", "reported_once", "embedded_once", "changed_once"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a training is none of `make fast`, whether or not it says so."""
    for item in items:
        if TRAINED.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)

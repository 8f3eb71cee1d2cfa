"""What becomes of a training whose controller fails."""

from __future__ import annotations

import pytest
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from jobs.train_launch import CONTROLLERS, _until_done


class Trainer:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.fits = 0

    def __call__(self) -> Trainer:
        return self

    def fit(self) -> None:
        self.fits += 1
        if self.errors:
            raise self.errors.pop()


LOST = ControllerError(RuntimeError("its placement group was removed"))


def test_another_controller_goes_on_and_not_for_ever() -> None:
    once = Trainer(LOST)
    _until_done(once)  # type: ignore[arg-type]
    assert once.fits == 2
    always = Trainer(*[LOST] * 99)
    with pytest.raises(ControllerError):
        _until_done(always)  # type: ignore[arg-type]
    assert always.fits == CONTROLLERS


def test_what_the_workers_raised_ends_it() -> None:
    failed = Trainer(WorkerGroupError("no", {0: ValueError()}))
    with pytest.raises(WorkerGroupError):
        _until_done(failed)  # type: ignore[arg-type]
    assert failed.fits == 1

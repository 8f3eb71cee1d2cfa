"""A training on Ray Train: what it starts, and what becomes of it where the controller fails."""

from __future__ import annotations

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from jobs.train.launch import CONTROLLERS, _Trainer, _until_done


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


def test_no_actor_is_started_that_has_nothing_to_do() -> None:
    def kinds(embedded: bool) -> set[str]:
        trainer = _Trainer(
            lambda: None, scaling_config=ScalingConfig(num_workers=1), embedded=embedded
        )
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    own = {type(callback).__name__ for callback in _ray_s_own()}
    assert {"DatasetsCallback", "PlacementGroupCleanerCallback"} <= own
    assert own - kinds(embedded=True) == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert own - kinds(embedded=False) == {"DatasetsCallback"}


def _ray_s_own() -> list:
    trainer = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    return trainer._create_default_callbacks()

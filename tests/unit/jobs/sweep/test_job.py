"""Drawing a sweep's trials; whole sweeps run in tests/integration."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from jobs.cluster.settings import RaySettings
from jobs.engine import runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.settings import build
from jobs.sweep.job import sweep
from jobs.sweep.settings import SweepSettings
from jobs.sweep.trial import draw
from tests.inline import NIGHT, InlineEmbed

TRAIN = {"dataset": "d", "model": "m", "epochs": 4}


def drawn(search: dict, **values) -> list[dict]:
    settings = build(SweepSettings, {"train": TRAIN, "search": search, **values})
    return [trial.drawn for trial in draw(settings)]


def test_draws_follow_their_spaces_and_the_seed() -> None:
    search = {
        "learning_rate": {"log_uniform": [1e-4, 1e-1]},
        "objective.beta": {"uniform": [0.5, 4.0]},
        "latent_dim": {"choice": [8, 16, 32]},
        "network.kind": {"choice": ["mlp", "conv"]},
    }
    found = drawn(search, trials=400)
    assert len(found) == 400
    assert found == drawn(search, trials=400)
    assert found != drawn(search, trials=400, seed=1)
    rates = [math.log10(one["learning_rate"]) for one in found]
    assert all(-4 <= rate <= -1 for rate in rates)
    assert sum(rates) / 400 == pytest.approx(-2.5, abs=0.15)
    betas = [one["objective.beta"] for one in found]
    assert all(0.5 <= beta <= 4.0 for beta in betas)
    assert sum(betas) / 400 == pytest.approx(2.25, abs=0.2)
    assert set(Counter(one["latent_dim"] for one in found)) == {8, 16, 32}


def test_equal_draws_are_one_trial() -> None:
    assert len(drawn({"latent_dim": {"choice": [8, 16]}}, trials=50)) == 2


def test_a_draw_is_in_the_settings_of_its_trial() -> None:
    settings = build(
        SweepSettings,
        {"train": TRAIN, "search": {"objective.beta": {"choice": [2.5]}}, "trials": 1},
    )
    (trial,) = draw(settings)
    assert trial.settings.objective.beta == 2.5
    assert trial.settings.epochs == 4


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"learning_rat": {"choice": [1]}}, "unknown setting 'learning_rat'; known: .*alias"),
        ({"objective.bet": {"choice": [1]}}, "unknown setting 'objective.bet'; known: alpha"),
        ({"nothing.beta": {"choice": [1]}}, "unknown setting 'nothing.beta'"),
        ({"likelihood.kind": {"choice": ["gaussian"]}}, "do not compare"),
        ({"seed": {"choice": [1]}}, "do not compare"),
        ({"latent_dim": {"choice": [0]}}, "latent_dim"),
        ({"latent_dim": {}}, "give one of"),
        ({"latent_dim": {"choice": [1], "uniform": [1, 2]}}, "give one of"),
        ({"learning_rate": {"uniform": [2, 1]}}, "lower end"),
        ({"learning_rate": {"log_uniform": [0, 1]}}, "positive"),
        ({}, "search"),
    ],
)
def test_mistakes_are_told(search: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        drawn(search, trials=3)


def test_a_sweep_tries_latent_sizes_only_where_a_table_could_take_them(
    trained: LakePaths, monkeypatch
) -> None:
    class Begun(Exception):
        pass

    def run_trials(*_arguments) -> None:
        raise Begun

    monkeypatch.setattr("jobs.sweep.launch.run_trials", run_trials)
    asked = {
        "train": {"dataset": "d", "model": "m", "epochs": 1},
        "search": {"latent_dim": {"choice": [4, 8]}},
    }
    settings = SweepSettings.model_validate(asked)
    with pytest.raises(Begun):
        sweep(trained, settings, NIGHT, RaySettings())
    runner.run(InlineEmbed(trained))
    with pytest.raises(InputError, match="these settings have 8: use another model name"):
        sweep(trained, settings, NIGHT, RaySettings())

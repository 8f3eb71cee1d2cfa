"""When a night trains although there is a champion."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows.nightly.retrain import Champion, champion_of, reason_to_train, why_train
from flows.nightly.settings import NightlySettings, RetrainSettings, load_nightly
from jobs.engine import records, runner
from jobs.errors import InputError
from jobs.lake.paths import LakePaths
from jobs.settings import build
from jobs.tables import catalog
from jobs.train.settings import TrainSettings
from tests.helpers import write_source
from tests.inline import InlineStage, InlineTrain

HELD = Champion(name="m@abc", night="2026-01-01", images=100)
MODEL = TrainSettings(dataset="d", model="m")


@pytest.mark.parametrize(
    ("rule", "night", "images", "asked", "why"),
    [
        ({}, "2027-01-01", 10**9, False, None),
        ({}, "2026-01-01", 100, True, "it was requested"),
        ({"every_nights": 7}, "2026-01-07", 100, False, None),
        ({"every_nights": 7}, "2026-01-08", 100, False, "m@abc is 7 nights old"),
        ({"new_images": 50}, "2026-01-08", 149, False, None),
        (
            {"new_images": 50},
            "2026-01-08",
            150,
            False,
            "there are 50 images more than m@abc was trained on",
        ),
        ({"new_images": 50, "every_nights": 3}, "2026-01-04", 90, False, "m@abc is 3 nights old"),
        ({"drift": True}, "2026-01-04", 90, False, None),
    ],
)
def test_the_rule(rule: dict, night: str, images: int, asked: bool, why: str | None) -> None:
    assert why_train(RetrainSettings(**rule), HELD, night, images, asked) == why


def test_drift_is_a_reason_where_the_rule_says_so() -> None:
    drifted = dataclasses.replace(HELD, drifted=True)
    why = why_train(RetrainSettings(drift=True), drifted, "2026-01-02", 100, False)
    assert why == "images have drifted from those of m@abc"
    assert why_train(RetrainSettings(), drifted, "2026-01-02", 100, False) is None


def test_a_training_that_was_given_up_is_gone_on_with(trained: LakePaths, tmp_path: Path) -> None:
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    given_up = InlineTrain(trained)
    rule = RetrainSettings()
    assert reason_to_train(trained, given_up.settings, rule, "2026-01-03", requested=False) is None
    records.save_plan(trained, given_up.plan())
    why = reason_to_train(trained, given_up.settings, rule, "2026-01-03", requested=False)
    assert why == "a training was left unfinished"
    other = given_up.settings.model_copy(update={"epochs": 77})
    assert reason_to_train(trained, other, rule, "2026-01-03", requested=False) is None


def test_a_challenger_that_was_refused_is_not_trained_again_each_night(
    trained: LakePaths, tmp_path: Path
) -> None:
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-08"))
    rule = RetrainSettings(every_nights=7, new_images=50)
    assert reason_to_train(trained, MODEL, rule, "2026-01-08", requested=False)
    runner.run(InlineTrain(trained, night="2026-01-08"))  # which leaves the champion alone
    assert reason_to_train(trained, MODEL, rule, "2026-01-09", requested=False) is None
    why = reason_to_train(trained, MODEL, rule, "2026-01-15", requested=False)
    assert why is not None
    assert why.endswith("7 nights old")


def test_a_plan_that_the_night_would_not_go_on_with_is_no_reason(
    trained: LakePaths, tmp_path
) -> None:
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    by_hand = InlineTrain(trained, promote=True)
    records.save_plan(trained, by_hand.plan())
    of_the_night = by_hand.settings.model_copy(update={"promote": False})
    assert reason_to_train(trained, of_the_night, RetrainSettings(), "2026-01-03", False) is None


def test_without_a_champion_there_is_always_a_reason() -> None:
    assert why_train(RetrainSettings(), None, "2026-01-01", 5, False) == "there is no champion yet"


def test_a_champion_of_an_unknown_night_is_never_too_old() -> None:
    unknown = Champion(name="m@abc", night=None, images=100)
    rule = RetrainSettings(every_nights=1)
    assert why_train(rule, unknown, "2027-01-01", 100, False) is None


def test_the_facts_of_a_lake(trained: LakePaths, tmp_path: Path) -> None:
    assert champion_of(trained, TrainSettings(dataset="d", model="nobody")) is None
    held = champion_of(trained, MODEL)
    assert held is not None
    _, version = catalog.resolve_model(trained, "m")
    assert held == Champion(name=f"m@{version}", night="2026-01-01", images=600)
    write_source(tmp_path / "more" / "b.parquet", range(600, 650))
    runner.run(InlineStage(trained, tmp_path / "more", night="2026-01-02"))
    rule = RetrainSettings(new_images=50)
    why = reason_to_train(trained, MODEL, rule, "2026-01-02", requested=False)
    assert why == f"there are 50 images more than m@{version} was trained on"
    # Once it has trained on them there is no reason any more.
    runner.run(InlineTrain(trained, promote=True))
    assert reason_to_train(trained, MODEL, rule, "2026-01-02", requested=False) is None


NIGHT = {
    "stage": {"source": "/x", "dataset": "d"},
    "train": {"dataset": "d", "model": "m"},
    "embed": {"dataset": "d", "model": "m"},
}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"schedule": {"cron": "0 2 * *"}}, "schedule.cron: cron has five fields"),
        ({"schedule": {"cron": "0 2 * * *", "timezone": "Berlin"}}, "unknown time zone 'Berlin'"),
        ({"retrain": {"every_nights": 0}}, "retrain.every_nights"),
        ({"retrain": {"nights": 3}}, "known: every_nights, new_images"),
        ({"timeouts": {"stage_s": 0}}, "timeouts.stage_s"),
        ({"embed": {"dataset": "e", "model": "m"}}, r"different datasets \(d, e\)"),
        ({"evaluate": None}, "gate reads evaluations"),
        ({"retrain": {"drift": True}, "drift": None}, "retrain.drift needs drift"),
        (
            {"train": {"dataset": "d", "model": "m", "alias": "trial"}},
            "write embed.model: m@trial",
        ),
        (
            {"retrain": {"drift": True}, "embed": {"dataset": "d", "model": "other"}},
            "retrain.drift trains m, but drift is looked for in what other embeds",
        ),
        ({"drift": {"alpha": 0.01, "relabellings": 99}}, "no drift could be found"),
    ],
)
def test_what_a_night_cannot_be_told(more: dict, message: str) -> None:
    build(NightlySettings, NIGHT)
    with pytest.raises(InputError, match=message):
        build(NightlySettings, NIGHT | more)


def test_a_config_in_the_lake_is_read_there(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump(NIGHT))
    assert load_nightly(path.as_uri()) == load_nightly(str(path))
    with pytest.raises(InputError, match="there is no config file"):
        load_nightly((tmp_path / "none.yaml").as_uri())


def test_a_night_may_say_how_many_workers_evaluate() -> None:
    told = build(NightlySettings, NIGHT | {"evaluate": {"samples": 8, "workers": 3}})
    asked = told.evaluation("m")
    assert asked is not None
    assert (asked.workers, asked.samples, asked.model) == (3, 8, "m")
    with pytest.raises(InputError, match=r"evaluate\.workers"):
        build(NightlySettings, NIGHT | {"evaluate": {"workers": 0}})

from __future__ import annotations

from pathlib import Path

import pytest

from flows.nightly.settings import NightlySettings, load_nightly, valid_night
from jobs.cluster.settings import RaySettings
from jobs.embed.settings import EmbedSettings
from jobs.errors import InputError
from jobs.promote.settings import PromoteSettings
from jobs.settings import build, load_yaml
from jobs.stage.settings import StageSettings
from jobs.train.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[4]


def test_the_config_in_infra_is_valid() -> None:
    settings = load_nightly(str(ROOT / "infra" / "nightly.yaml"))
    assert settings.train.network.widths == (32, 64, 128)
    assert settings.ray.autoscaling is True


def test_every_wrong_key_is_told_in_one_go() -> None:
    wrong = {"source": "x", "dataset": "d", "heigth": 3, "channels": 2, "max_refused": 7}
    with pytest.raises(InputError) as error:
        build(StageSettings, wrong)
    for told in ("heigth: unknown key; known: source, dataset", "channels", "max_refused"):
        assert told in str(error.value)


def test_a_wrong_key_of_an_optional_section_is_told_with_those_it_has() -> None:
    with pytest.raises(InputError, match=r"rule\.gain: unknown key; known: gain_nats, probe_loss"):
        build(PromoteSettings, {"model": "m@v", "rule": {"gain": 1}})


def test_settings_do_not_change_and_survive_json() -> None:
    settings = build(TrainSettings, {"dataset": "d", "model": "m", "objective": {"beta": 2.0}})
    assert build(TrainSettings, settings.model_dump(mode="json")) == settings
    with pytest.raises(Exception, match="frozen"):
        settings.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "kind", [EmbedSettings, NightlySettings, RaySettings, StageSettings, TrainSettings]
)
def test_every_setting_is_described_for_the_form(kind) -> None:
    if kind is not NightlySettings:
        for name, field in kind.model_fields.items():
            assert field.description, name
    assert "additionalProperties" in kind.model_json_schema()


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_yaml(str(tmp_path / "none.yaml"))
    (tmp_path / "a.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is not YAML"):
        load_yaml(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("- a\n- b\n")
    with pytest.raises(InputError, match="holds no mapping"):
        load_yaml(str(tmp_path / "b.yaml"))


def test_a_night_is_a_date() -> None:
    assert valid_night("2026-11-21") == "2026-11-21"
    with pytest.raises(InputError, match="YYYY-MM-DD"):
        valid_night("21.11.2026")


def test_an_unknown_decision_score_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown score 'loss'; known: recon_nll, kl"):
        build(TrainSettings, {"dataset": "d", "model": "m", "decision_score": "loss"})

"""`latentlake report` as users call it."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.cli.main import cli
from jobs.engine import runner
from jobs.lake.paths import LakePaths
from tests.helpers import write_source
from tests.inline import InlineStage

pytestmark = pytest.mark.slow

NIGHT = "2026-01-01"


@pytest.fixture
def lake(tmp_path: Path) -> LakePaths:
    """With one night, of few images, and no model."""
    lake = LakePaths((tmp_path / "lake").as_uri())
    write_source(tmp_path / "source" / "a.parquet", range(40), broken=[3])
    runner.run(InlineStage(lake, tmp_path / "source"))
    return lake


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a browser was asked to show."""
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: asked.append(url) or True)
    return asked


def report(lake: LakePaths, *more: str) -> Result:
    asked = ["report", "--dataset", "d", "--model", "m", "--lake", lake.uri, *more]
    return CliRunner().invoke(cli, asked)


def test_the_last_night_is_reported_in_sentences(lake: LakePaths, shown: list[str]) -> None:
    ran = report(lake)
    assert ran.exit_code == 0, ran.output
    assert "39 new images arrived and 1 was refused." in ran.output
    assert f"{lake.uri}/runs/night-d-{NIGHT}/report-m.html" in ran.output
    assert shown == []


def test_json_tells_the_same(lake: LakePaths) -> None:
    told = json.loads(report(lake, "--json").stdout)
    assert told["night"] == NIGHT
    assert told["uri"] == f"{lake.uri}/runs/night-d-{NIGHT}/report-m.html"
    assert told["status"] == "look"
    assert len(told["headline"]) == 3
    assert told["file"] is None


def test_out_is_a_copy_and_open_shows_it(lake: LakePaths, shown: list[str], tmp_path: Path) -> None:
    out = tmp_path / "mail.html"
    told = json.loads(report(lake, "--out", str(out), "--open", "--json").stdout)
    assert out.read_bytes().startswith(b"<!doctype html>")
    assert len(out.read_bytes()) == told["bytes"]
    assert shown == [out.as_uri()]


def test_open_shows_the_page_itself_where_it_lies_here(lake: LakePaths, shown: list[str]) -> None:
    assert report(lake, "--open").exit_code == 0
    assert shown == [f"{lake.uri}/runs/night-d-{NIGHT}/report-m.html"]


def test_without_a_browser_it_says_where_the_page_is(
    lake: LakePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    ran = report(lake, "--open")
    assert ran.exit_code == 0
    assert "no browser could be started; open /" in ran.stderr


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--night", "soon"), "write YYYY-MM-DD"),
        (("--dataset", "x"), "unknown dataset 'x'"),
        (("--model", "M x"), "is not usable"),
        (("--out", "/no/such/folder/a.html"), "--out /no/such/folder/a.html: No such file"),
    ],
)
def test_mistakes_are_sentences(lake: LakePaths, more: tuple[str, str], told: str) -> None:
    ran = report(lake, *more)
    assert told in str(ran.exception)
    assert getattr(ran.exception, "exit_code", None) == 2


def test_help_brings_neither_torch_nor_bokeh() -> None:
    from tests.unit.test_house import loaded_after

    page = "from flows.cli.main import cli\ncli.main(['report', '--help'], standalone_mode=False)"
    assert not loaded_after(page) & {"ray", "torch", "prefect", "bokeh", "jinja2"}

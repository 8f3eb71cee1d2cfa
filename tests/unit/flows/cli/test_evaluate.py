"""evaluate and compare as commands: tables for people, JSON for programs, sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.cli.main import cli
from jobs.engine import runner
from jobs.evaluate.job import EvaluateJob
from jobs.lake.paths import LakePaths
from jobs.tables import catalog
from tests.helpers import write_source
from tests.inline import Inline, InlineStage, InlineTrain

pytestmark = pytest.mark.slow


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LakePaths:
    """Two models of a few images; evaluate runs in this process."""
    monkeypatch.setattr(EvaluateJob, "execute", Inline.execute)
    monkeypatch.setattr(EvaluateJob, "executed", [], raising=False)
    write_source(tmp_path / "source" / "a.parquet", range(300))
    lake = LakePaths((tmp_path / "lake").as_uri())
    runner.run(InlineStage(lake, tmp_path / "source"))
    for model in ("m", "n"):
        runner.run(InlineTrain(lake, model=model, seed=len(model), epochs=1 + (model == "n")))
    return lake


def latentlake(lake: LakePaths, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--lake", lake.uri])


def test_both_print_tables_and_json(lake: LakePaths) -> None:
    asked = ("evaluate", "--dataset", "d", "--samples", "3", "--anomaly", "label=9", "--model")
    shown = latentlake(lake, *asked, "m")
    assert shown.exit_code == 0, shown.output
    for text in ("evaluate m: done in", "log_likelihood", "memorisation", "of 3 samples"):
        assert text in shown.stdout
    told = latentlake(lake, *asked, "n", "--json")
    result = json.loads(told.stdout)
    assert result["job"] == "evaluate"
    metrics = {(row["metric"], row["of"]): row for row in result["metrics"]}
    assert metrics["auroc", "neg_elbo"]["low"] <= metrics["auroc", "neg_elbo"]["high"]
    again = json.loads(latentlake(lake, *asked, "n", "--json").stdout)
    assert (again["job_ids"], again["metrics"]) == ([], result["metrics"])
    shown = latentlake(lake, "compare", "m", "n")
    assert shown.exit_code == 0, shown.output
    assert "difference" in shown.stdout
    rows = json.loads(latentlake(lake, "compare", "m", "n", "--json").stdout)
    assert {row["metric"] for row in rows} >= {"log_likelihood", "active_units", "auroc"}
    names = [f"{model}@{catalog.aliases(lake, model)['champion']}" for model in ("m", "n")]
    for row in rows:
        assert [row["first_model"], row["second_model"], row["dataset"]] == [*names, "d"]
    title = " ".join(shown.stdout.split("\n\n")[0].split())
    assert title.startswith(f"first: {names[0]}; second: {names[1]}; difference: second less first")
    assert title.endswith(f"on the test split of d, {rows[0]['images']} images")
    same = latentlake(lake, "compare", "m@champion", "m").stdout
    assert f"first and second are both {names[0]}: a bundle does not differ from itself" in same
    found = latentlake(lake, "query", "sql", "SELECT count(*) AS n FROM evaluations", "--json")
    assert json.loads(found.stdout)[0]["n"] == 2 * len(result["metrics"])


def test_a_number_that_could_not_be_had_is_one_line_not_a_row(lake: LakePaths) -> None:
    shown = latentlake(lake, "evaluate", "--dataset", "d", "--model", "m", "--samples", "2").stdout
    assert shown.count("has no column 'is_anomaly' (name one with --anomaly)") == 1
    assert "auroc, average_precision: dataset 'd' has no column 'is_anomaly'" in shown


def test_a_dry_run_prints_the_units_and_writes_nothing(lake: LakePaths) -> None:
    shown = latentlake(lake, "evaluate", "--dataset", "d", "--model", "m", "--dry-run", "--json")
    units = json.loads(shown.stdout)["units"]
    assert [unit["split"] for unit in units] == ["test", "train"]
    assert not Path(lake.model("m", "evaluated").removeprefix("file://")).exists()


def test_mistakes_are_told_in_a_sentence(lake: LakePaths) -> None:
    from jobs.errors import InputError

    for arguments, told in (
        (("evaluate", "--dataset", "x", "--model", "m"), "unknown dataset 'x'"),
        (("evaluate", "--dataset", "d", "--model", "m", "--max-images", "3"), "max_images"),
        (("compare", "m", "n"), "has not been evaluated on 'd'; run latentlake evaluate"),
    ):
        error = latentlake(lake, *arguments).exception
        assert isinstance(error, InputError)
        assert told in str(error)


def test_an_older_snapshot_shows_its_own_numbers(lake: LakePaths, tmp_path: Path) -> None:
    asked = ("evaluate", "--dataset", "d", "--model", "m", "--samples", "2", "--json")
    old = json.loads(latentlake(lake, *asked).stdout)["metrics"]
    write_source(tmp_path / "more" / "b.parquet", range(1000, 1200))
    runner.run(InlineStage(lake, tmp_path / "more", night="2026-01-02"))
    new = json.loads(latentlake(lake, *asked).stdout)["metrics"]
    assert new[0]["images_version"] > old[0]["images_version"]
    again = (*asked, "--images-version", str(old[0]["images_version"]))
    for _ in range(2):  # evaluated anew, and then only shown
        shown = json.loads(latentlake(lake, *again).stdout)["metrics"]
        assert [row["value"] for row in shown] == [row["value"] for row in old]
        assert {row["images_version"] for row in shown} == {old[0]["images_version"]}

"""The guide tells the truth: its configs are accepted, its tables name everything there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from jobs.evaluate.results import METRICS
from jobs.schemas.dataset import TableSpec
from jobs.schemas.registry import SPECS
from jobs.settings import build
from jobs.train.settings import TrainSettings
from vae_core.config import LikelihoodKind, NetworkKind, ObjectiveKind

DOCS = Path(__file__).parents[2] / "docs"
MODELS = (DOCS / "models.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", MODELS, re.S))
def test_the_configs_of_the_guide_are_accepted(block: str) -> None:
    settings = build(TrainSettings, yaml.safe_load(block))
    assert settings.model_config_of((28, 28, 1))


@pytest.mark.parametrize("kind", [NetworkKind, LikelihoodKind, ObjectiveKind])
def test_the_tables_name_every_kind(kind) -> None:
    for name in get_args(kind):
        assert f"| `{name}`" in MODELS, name


def test_every_picture_and_page_that_is_linked_is_there() -> None:
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


TABLES = (DOCS / "tables.md").read_text()


def columns_text(spec: TableSpec) -> str:
    """The table of columns that docs/tables.md has of a table."""
    lines = ["| column | type | unit | an anomaly is | |", "|---|---|---|---|---|"]
    for field in spec.schema:
        told = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        kind = str(field.type).replace("list<element: ", "list<").replace("|", "\\|")
        kind = "binary" if kind.startswith("fixed_size_binary") else kind
        cells = [f"`{field.name}`", kind, told.get("unit", ""), told.get("anomalous", "")]
        lines.append(
            f"| {' | '.join([*cells, told['comment'].replace('|', chr(92) + '|')])} |".replace(
                "  ", " "
            )
        )
    return "\n".join(lines)


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_every_column_of_every_table_is_told(spec: TableSpec) -> None:
    section = TABLES.split(f"## `{spec.name}`\n")[1].split("\n## ")[0]
    assert columns_text(spec) in section
    for column in spec.partition_by:
        assert f"`{column}`" in section.split("| column")[0], column


def test_every_metric_of_an_evaluation_is_told() -> None:
    page = (DOCS / "evaluating.md").read_text()
    for name, metric in METRICS.items():
        assert f"| `{name}` | {metric.unit} | {metric.better} |" in page, name

"""Every command in infra/ and on its page is one that the program of that name takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from tests.unit.infra.files import ROOT
from tests.unit.infra.told import commands

PLACES = ("FILE", "FOLDER")  # for the reader to fill in


def parse_click(command: click.Command, words: list[str]) -> None:
    """Takes the words apart as the program would, and runs nothing."""
    context = command.make_context(command.name, list(words))
    while isinstance(context.command, click.Group):
        name, sub, rest = context.command.resolve_command(
            context, context._protected_args + context.args
        )
        assert sub is not None, name
        context = sub.make_context(name, rest, parent=context)


def parse_prefect(words: list[str]) -> None:
    from prefect.cli._app import _app

    words = [word for word in words if word != "--no-prompt"]  # of prefect itself
    command, _, _ = _app.parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ not in ("help_print", "version_print"), words


def parse(words: list[str]) -> None:
    tool, rest = words[0], words[1:]
    if tool == "prefect":
        parse_prefect(rest)
        return
    if tool == "latentlake":
        from flows.cli.main import cli
    else:
        from ray.scripts.scripts import cli
    parse_click(cli, rest)


def distinct() -> list[tuple[str, list[str]]]:
    seen: dict[tuple[str, ...], str] = {}
    for name, words in commands():
        seen.setdefault(tuple(words), name)
    return [(name, list(words)) for words, name in seen.items()]


@pytest.mark.parametrize(("name", "words"), distinct(), ids=lambda v: str(v)[:60])
def test_the_program_takes_it(name: str, words: list[str]) -> None:
    parse(words)


def test_commands_are_found_in_manifests_comments_and_pages() -> None:
    found = {(name, words[0], words[1]) for name, words in commands()}
    assert {
        ("infra/kubernetes/rayjob.yaml", "latentlake", "embed"),
        ("infra/kubernetes/prefect-worker.yaml", "prefect", "worker"),
        ("infra/compose.yaml", "ray", "start"),
        ("infra/compose.yaml", "prefect", "--no-prompt"),
        ("infra/aws/ray-cluster.yaml", "ray", "start"),
        ("infra/aws/ray-cluster.yaml", "latentlake", "list"),
        ("infra/prefect-kubernetes.yaml", "prefect", "work-pool"),
        ("infra/README.md", "ray", "up"),
        ("docs/clusters.md", "prefect", "deploy"),
    } <= found


@pytest.mark.parametrize(
    "words",
    [
        "latentlake embd --dataset a --model b",
        "latentlake embed --dataset a",
        "latentlake embed --dataset a --model b --worker-count 3",
        "latentlake embed --dataset a --model b --workers many",
        "ray strat --head",
        "ray start --head --metrics-port=8080",
        "ray start --head --num-cpus=none",
        "prefect worker start --pul a",
        "prefect work-pool mkae a",
        "prefect deploy --al",
    ],
)
def test_a_command_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(
        Exception, match=r"(?i)no such|missing|unknown|invalid|not a valid|requires"
    ):
        parse(words.split())


def test_files_that_commands_name_are_there() -> None:
    for name, words in commands():
        for word in words:
            if word.startswith("infra/"):
                assert (ROOT / word).exists(), f"{name}: {word}"


def test_other_files_that_the_pages_name_are_there() -> None:
    import re

    for page in (ROOT / "infra" / "README.md", ROOT / "docs" / "clusters.md"):
        for word in re.findall(r"\binfra/[\w./-]+\w", page.read_text()):
            assert (ROOT / word).exists(), f"{page.name}: {word}"


def settings_known() -> set[str]:
    """Every environment variable that Prefect takes a setting from."""
    from prefect.settings import Settings

    def names(model: Any) -> set[str]:
        found: set[str] = set()
        for key, field in model.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                found |= names(field.annotation)
            choices = getattr(field.validation_alias, "choices", [])
            found |= {choice.upper() for choice in choices if isinstance(choice, str)}
            found.add(f"{model.model_config.get('env_prefix', 'PREFECT_')}{key}".upper())
        return found

    return names(Settings)


def test_prefects_variables_are_settings_of_prefect() -> None:
    import re

    known, found = settings_known(), set()
    for path in [*Path(ROOT / "infra").rglob("*.yaml"), ROOT / "infra" / "Dockerfile"]:
        found |= set(re.findall(r"(?<!\$\{)\bPREFECT_[A-Z_]+\b(?=[:=,])", path.read_text()))
    assert len(found) > 8
    assert "PREFECT_NO_SUCH_SETTING" not in known
    assert found - known == set()

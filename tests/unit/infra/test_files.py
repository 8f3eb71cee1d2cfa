"""What holds for every file of infra/: it parses, versions are pinned, no secret has a value."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import ray

from flows.nightly.settings import load_nightly
from tests.unit.infra.files import (
    INFRA,
    OURS,
    PROJECT,
    ROOT,
    TARGETS,
    VERSION,
    data_files,
    document,
    documents,
    images,
    infra_files,
    walk,
)

SECRET = re.compile(r"passw|secret|token|credential|private|auth_string|(api|access)_?key", re.I)
# Keys that look like secrets and hold none: what they name is elsewhere.
NAMES_OF = {
    "secretKeyRef", "secretRef", "secrets", "ray_token", "authOptions", "credentials_file",
    "automountServiceAccountToken", "RAY_AUTH_MODE", "HttpTokens", "authorization",
}  # fmt: skip


@pytest.mark.parametrize("path", data_files(), ids=lambda p: p.relative_to(INFRA).as_posix())
def test_it_parses(path: Path) -> None:
    assert all(documents(path))


def test_the_page_names_every_file() -> None:
    page = (INFRA / "README.md").read_text()
    named = set(re.findall(r"^- `([^`]+)`:", page, re.M))
    for path in infra_files():
        name = path.relative_to(INFRA).as_posix()
        folder = f"{name.split('/')[0]}/"
        assert name == "README.md" or name in named or folder in named, name
    assert all((INFRA / name).exists() for name in named)


def pinned(image: str) -> bool:
    """Whether an image's tag is a version that names at least major and minor."""
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    return bool(re.match(r"v?\d+\.\d+", tag)) and "latest" not in image


def all_images() -> list[tuple[str, str]]:
    paths = [INFRA / "Dockerfile", *data_files()]
    return [(path.name, image) for path in paths for image in images(path)]


def test_every_image_has_a_version() -> None:
    found = all_images()
    assert len(found) > 15
    assert [pair for pair in found if not pinned(pair[1])] == []


@pytest.mark.parametrize("image", ["a", "a:latest", "h:5000/a", "a:3", "a:stable", "a:v1.2-latest"])
def test_an_image_without_a_version_is_found(image: str) -> None:
    assert not pinned(image)


def test_no_line_says_latest_of_an_image() -> None:
    for path in infra_files():
        assert ":latest" not in path.read_text(), path


def test_our_image_has_the_projects_version_and_a_target_of_the_dockerfile() -> None:
    ours = [image for _, image in all_images() if image.startswith(OURS)]
    assert {image.split("-")[-1] for image in ours} == set(TARGETS)
    assert {image.split(":")[1].rsplit("-", 1)[0] for image in ours} == {VERSION}
    stages = re.findall(r" AS (\S+)$", (INFRA / "Dockerfile").read_text(), re.M)
    assert set(TARGETS) <= set(stages)


def test_the_commands_that_build_it_name_the_same_version() -> None:
    for path in (INFRA / "Dockerfile", INFRA / "README.md", ROOT / "docs" / "clusters.md"):
        tags = re.findall(rf"{OURS}:([\w.]+)-(\w+)", path.read_text())
        assert tags, path
        assert set(tags) <= {(VERSION, target) for target in TARGETS}, path


def secret_values(path: Path) -> list[tuple[str, str]]:
    """Values under keys that look like secrets, and of environment pairs with such a name."""
    found = []
    for each in documents(path):
        for keys, value in walk(each):
            names = [key for key in keys if SECRET.search(key) and key not in NAMES_OF]
            is_pair = isinstance(value, dict) and SECRET.search(str(value.get("name", "")))
            if isinstance(value, str | int) and names and keys[-1] in names:
                found.append((keys[-1], str(value)))
            elif is_pair and "value" in value and value["name"] not in NAMES_OF:
                found.append((value["name"], str(value["value"])))
    return found


def is_reference(value: str) -> bool:
    """A variable without a default, or the path of a file."""
    return bool(re.fullmatch(r"\$\{[A-Z_0-9]+:\?[^}]+\}", value)) or value.startswith(
        ("/run/", "~/")
    )


@pytest.mark.parametrize("path", data_files(), ids=lambda p: p.relative_to(INFRA).as_posix())
def test_no_secret_has_a_value(path: Path) -> None:
    assert [pair for pair in secret_values(path) if not is_reference(pair[1])] == []


def test_secrets_are_found_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "a: {POSTGRES_PASSWORD: hunter2, RAY_AUTH_TOKEN: '${T:-x}', AWS_SECRET_ACCESS_KEY: 7}\n"
        "env: [{name: PREFECT_API_KEY, value: abc}]\n"
        "b: {GF_SECURITY_ADMIN_PASSWORD: '${G:?of Grafana}'}\n"
    )
    assert len([pair for pair in secret_values(path) if not is_reference(pair[1])]) == 4
    assert len(secret_values(INFRA / "compose.yaml")) > 8


def test_no_file_has_what_looks_like_a_key() -> None:
    looks = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN|ghp_\w{20}|pnu_\w{20}|[0-9a-f]{40}(?![0-9a-f])"
    )
    for path in infra_files():
        text = re.sub(r"--hash=sha256:[0-9a-f]{64}", "", path.read_text())
        assert not looks.search(text), path


def test_ray_has_one_version() -> None:
    (pin,) = [d for d in PROJECT["dependencies"] if d.startswith("ray[")]
    assert pin.endswith(f"=={ray.__version__}")
    cluster = document("kubernetes/raycluster.yaml")["spec"]
    job = document("kubernetes/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == job["rayVersion"] == ray.__version__
    for path in [*infra_files(), ROOT / "docs" / "clusters.md"]:
        told = re.findall(r"\bray(?:==| )(\d+\.\d+\.\d+)", path.read_text())
        assert set(told) <= {ray.__version__}, path


def test_kuberay_has_one_version() -> None:
    paths = [*infra_files(), ROOT / "docs" / "clusters.md", ROOT / "tests/schemas/README.md"]
    text = "".join(path.read_text() for path in paths if path.suffix in (".yaml", ".md"))
    told = re.findall(r"KubeRay (\d\S*\d)|kuberay-operator --version (\S+)", text)
    assert len({one or other for one, other in told}) == 1


def nightly_configs() -> list[Path]:
    return sorted(INFRA.glob("nightly*.yaml"))


@pytest.mark.parametrize("path", nightly_configs(), ids=lambda p: p.name)
def test_nightly_configs_are_accepted(path: Path) -> None:
    assert load_nightly(str(path)).lake.startswith("s3://")


def test_no_name_of_this_machine() -> None:
    """Only addresses of the deployment's own network, of examples, and of loopback."""
    allowed = re.compile(
        r"https?://(127\.0\.0\.1|localhost|seaweedfs|prefect-server|ray-head|prometheus|HEAD"
        r"|[a-z-]+\.[a-z-]+\.svc|[a-z-]+\.example)(:|/|$)"
    )
    for path in [*infra_files(), ROOT / "docs" / "clusters.md", ROOT / ".dockerignore"]:
        for url in re.findall(r"https?://[^\s\"'`|)]+", path.read_text()):
            assert allowed.match(url), f"{path.name}: {url}"


def test_git_has_every_file() -> None:
    done = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "infra"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == ""

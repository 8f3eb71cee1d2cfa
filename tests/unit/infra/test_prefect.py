"""Both files of deployments: the same flows, parameters that the flows take, one pool each."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from typing import Any

import pytest
from prefect import Flow

from tests.unit.infra.files import INFRA, document

FILES = ("prefect.yaml", "prefect-kubernetes.yaml")
FLOWS = {"nightly", "train", "embed", "backfill", "maintain"}


def flow_of(entrypoint: str) -> Flow[Any, Any]:
    module, _, name = entrypoint.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", FILES)
def test_entrypoints_are_flows_that_take_the_parameters(name: str) -> None:
    deployments = document(name)["deployments"]
    assert {flow_of(each["entrypoint"]).name for each in deployments} == FLOWS
    for each in deployments:
        flow = flow_of(each["entrypoint"])
        assert isinstance(flow, Flow)
        flow.validate_parameters(each["parameters"])
        assert set(each["parameters"]) <= set(inspect.signature(flow.fn).parameters)
        assert each["concurrency_limit"] == 1
        # What `serve` shows of the same flow.
        summary = inspect.getdoc(flow.fn).split("\n\n")[0]
        assert each["description"] == " ".join(summary.split())


def test_both_files_have_the_same_deployments() -> None:
    process, kubernetes = (document(name)["deployments"] for name in FILES)
    assert len(process) == len(kubernetes) == len(FLOWS)
    # The pool, and where its runs find the config, are what differs.
    for one, other in zip(process, kubernetes, strict=True):
        assert set(one) == set(other)
        for key in set(one) - {"work_pool", "parameters"}:
            assert one[key] == other[key], (one["entrypoint"], key)
        assert set(one["parameters"]) == set(other["parameters"])
        ours, theirs = (each["work_pool"]["job_variables"]["env"] for each in (one, other))
        assert ours == theirs
    assert document(FILES[0])["pull"] == document(FILES[1])["pull"]


def test_every_deployment_of_a_file_is_in_its_pool() -> None:
    for name, pool in zip(FILES, ("latentlake", "latentlake-kubernetes"), strict=True):
        deployments = document(name)["deployments"]
        assert {each["work_pool"]["name"] for each in deployments} == {pool}
        text = (INFRA / name).read_text()
        assert f"prefect work-pool create {pool} --type" in text
        assert f"prefect deploy --prefect-file infra/{name} --all" in text


def placeholders(node: Any) -> set[str]:
    if isinstance(node, dict | list):
        values = node.values() if isinstance(node, dict) else node
        return {name for value in values for name in placeholders(value)}
    return set(re.findall(r"\{\{ (\w+) \}\}", node)) if isinstance(node, str) else set()


def template() -> dict[str, Any]:
    return json.loads((INFRA / "kubernetes" / "work-pool.json").read_text())


def test_the_pools_template_has_a_variable_for_every_placeholder() -> None:
    held = template()
    variables = held["variables"]["properties"]
    assert placeholders(held["job_configuration"]) == set(variables)
    for each in document("prefect-kubernetes.yaml")["deployments"]:
        assert set(each["work_pool"]["job_variables"]) <= set(variables)


def test_the_pools_pods_are_as_the_others() -> None:
    """Filled in, the manifest is one that the schema of our manifests accepts."""
    from tests.unit.infra.test_kubernetes import check

    held = template()
    values = {k: v.get("default") for k, v in held["variables"]["properties"].items()}
    values |= {"name": "run", "labels": {"a": "b"}, "env": [{"name": "A", "value": "1"}]}
    values |= {"command": ["prefect", "flow-run", "execute"]}

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        if not isinstance(node, str) or "{{" not in node:
            return node
        name = node.removesuffix("-").strip("{} ")
        return f"{values[name]}-" if node.endswith("-") else values[name]

    manifest = filled(held["job_configuration"]["job_manifest"])
    check(manifest)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    # The image's entrypoint is latentlake; what the worker puts into args is a whole command.
    assert container["command"] == ["env"]
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_automations_of_heartbeats_are_those_of_serve() -> None:
    from prefect.events.schemas.automations import AutomationCore

    from flows.serve.automations import watches

    def plain(automation: Any) -> dict[str, Any]:
        held = AutomationCore.model_validate(automation)
        return held.model_dump(exclude={"trigger": {"id"}})

    told = document("heartbeat.yaml")["automations"]
    assert [plain(each) for each in told] == [plain(each.model_dump()) for each in watches()]


@pytest.mark.parametrize("name", FILES)
def test_a_run_is_heard_of_as_often_as_the_watch_wants(name: str) -> None:
    from flows.prefect_env import WORKDIR
    from flows.serve.automations import LOST_AFTER_S
    from flows.serve.deployments import OF_RUNS

    for each in document(name)["deployments"]:
        env = each["work_pool"]["job_variables"]["env"]
        assert env == OF_RUNS | {WORKDIR: "/srv/latentlake"}
        assert 3 * int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) <= LOST_AFTER_S
        assert "latentlake" in each["tags"]


def test_a_pod_that_waits_for_its_image_is_not_taken_for_lost() -> None:
    from flows.serve.automations import NEVER_BEGAN_S

    waits = template()["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert waits < NEVER_BEGAN_S


@pytest.mark.parametrize("name", FILES)
def test_the_deployments_of_a_dataset_share_a_queue_of_one(name: str) -> None:
    (pool,) = {each["work_pool"]["name"] for each in document(name)["deployments"]}
    for each in document(name)["deployments"]:
        queue = each["work_pool"]["work_queue_name"]
        assert queue in each["tags"]
        told = f"prefect work-queue create {queue} --limit 1 --pool {pool}"
        assert told in (INFRA / name).read_text()

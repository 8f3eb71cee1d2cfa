"""Manifests: keys, references between them, accounts, groups, and KubeRay's own schema."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flows.nightly.settings import NightlySettings
from jobs.settings import build
from tests.unit.infra.files import INFRA, ROOT, containers, document, documents

FOLDER = INFRA / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
SCHEMA = json.loads((ROOT / "tests" / "schemas" / "kubernetes.json").read_text())
CRDS = os.environ.get("LATENTLAKE_KUBERAY_CRDS")


def objects() -> list[dict[str, Any]]:
    return [each for path in MANIFESTS for each in documents(path)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in objects() if each["kind"] == kind]


def ray_clusters() -> list[dict[str, Any]]:
    """The specs of both files."""
    (cluster,), (job,) = of_kind("RayCluster"), of_kind("RayJob")
    return [cluster["spec"], job["spec"]["rayClusterSpec"]]


def pods() -> list[dict[str, Any]]:
    found = [each["spec"]["template"]["spec"] for each in of_kind("Deployment")]
    for spec in ray_clusters():
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        found += [group["template"]["spec"] for group in groups]
    return found


def check(manifest: dict[str, Any]) -> None:
    """Against the schema of its kind; a `oneOf` of all would not say what is wrong."""
    kind = {"$ref": f"#/$defs/{manifest['kind']}", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft7Validator(kind).validate(manifest)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_the_manifests_have_known_keys_and_types(path: Path) -> None:
    for manifest in documents(path):
        check(manifest)


def head(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["spec"]["headGroupSpec"]


def misspelt(manifest: dict[str, Any], how: str) -> None:
    spec = manifest["spec"]
    container = head(manifest)["template"]["spec"]["containers"][0]
    if how == "top":
        spec["enableInTreeAutoscalling"] = spec.pop("enableInTreeAutoscaling")
    elif how == "group":
        spec["workerGroupSpecs"][0]["minReplica"] = 0
    elif how == "pod":
        head(manifest)["template"]["spec"]["serviceAcountName"] = "a"
    elif how == "container":
        container["limits"] = {"cpu": "1"}
    elif how == "start params":
        head(manifest)["rayStartParams"]["num-cpus"] = 0  # KubeRay takes strings alone
    elif how == "amount":
        container["resources"]["limits"]["memory"] = "8 GB"
    elif how == "environment":
        container["env"].append({"name": "A", "value": 1})
    elif how == "root":
        del head(manifest)["template"]["spec"]["securityContext"]
    else:
        spec["authOptions"]["mode"] = "off"


@pytest.mark.parametrize(
    "how",
    [
        "top", "group", "pod", "container", "start params", "amount", "environment", "root", "auth",
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused(how: str) -> None:
    manifest = copy.deepcopy(of_kind("RayCluster")[0])
    check(manifest)
    misspelt(manifest, how)
    with pytest.raises(jsonschema.ValidationError):
        check(manifest)


def test_every_object_of_the_schema_names_its_keys() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert "additionalProperties" in node, node
                assert node["additionalProperties"] is not True
            for value in node.values():
                walk(value)
        for value in node if isinstance(node, list) else ():
            walk(value)

    walk(SCHEMA)


def strict(node: Any) -> Any:
    """A CRD's schema that refuses what it does not name, and takes numbers for quantities."""
    if isinstance(node, list):
        return [strict(value) for value in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and "type" in node and not open_ended:
        made["additionalProperties"] = False
    return made


@pytest.mark.skipif(
    CRDS is None, reason="LATENTLAKE_KUBERAY_CRDS names no folder with KubeRay's CRDs"
)
@pytest.mark.parametrize(("crd", "kind"), [("rayclusters", "RayCluster"), ("rayjobs", "RayJob")])
def test_kuberays_own_schema_accepts_them(crd: str, kind: str) -> None:
    (definition,) = documents(Path(CRDS or "") / f"ray.io_{crd}.yaml")
    (schema,) = [
        strict(version["schema"]["openAPIV3Schema"])
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    ]
    schema["properties"]["metadata"] = {"type": "object"}
    (manifest,) = of_kind(kind)
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(manifest)
    manifest["spec"]["shutdownAfterJobFinishs"] = True
    assert not validator.is_valid(manifest)


def test_one_namespace_and_accounts_that_exist() -> None:
    (namespace,) = (each["metadata"]["name"] for each in of_kind("Namespace"))
    for each in objects():
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == namespace
    accounts = {each["metadata"]["name"] for each in of_kind("ServiceAccount")}
    assert {pod["serviceAccountName"] for pod in pods()} == accounts
    template = json.loads((FOLDER / "work-pool.json").read_text())["variables"]["properties"]
    assert template["service_account_name"]["default"] in accounts
    assert template["namespace"]["default"] == namespace


def test_s3_comes_by_a_role_and_no_pod_has_keys() -> None:
    for account in of_kind("ServiceAccount"):
        role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        assert role.startswith("arn:aws:iam::")
    for pod in pods():
        names = {pair["name"] for each in pod["containers"] for pair in each["env"]}
        assert "AWS_REGION" in names
        assert not names & {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


def test_requests_equal_limits() -> None:
    held = [c["resources"] for pod in pods() for c in pod["containers"]]
    held += [spec["autoscalerOptions"]["resources"] for spec in ray_clusters()]
    assert len(held) == 8
    assert all(resources["requests"] == resources["limits"] for resources in held)


def test_groups_begin_empty_and_grow() -> None:
    for spec in ray_clusters():
        assert spec["enableInTreeAutoscaling"] is True
        for group in spec["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    (cluster, _) = ray_clusters()
    assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["cpu", "gpu"]


def test_a_gpu_group_has_a_gpu_the_cuda_image_and_a_toleration() -> None:
    for spec in ray_clusters():
        for group in spec["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            is_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert is_gpu == (group["groupName"] == "gpu")
            assert is_gpu == container["image"].endswith("-cuda")
            keys = [each["key"] for each in pod.get("tolerations", [])]
            assert keys == (["nvidia.com/gpu"] if is_gpu else [])
            told = group["rayStartParams"].get("num-gpus")
            assert told == (container["resources"]["limits"]["nvidia.com/gpu"] if is_gpu else None)


def test_start_parameters_are_options_of_ray_start() -> None:
    from ray.scripts.scripts import start

    known = {option.lstrip("-") for param in start.params for option in param.opts}
    for spec in ray_clusters():
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert set(group["rayStartParams"]) <= known


def test_the_workers_config_is_accepted_and_names_the_cluster() -> None:
    (config,) = of_kind("ConfigMap")
    settings = build(NightlySettings, yaml.safe_load(config["data"]["nightly.yaml"]))
    (cluster,) = of_kind("RayCluster")
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    # KubeRay names the head's Service after the cluster.
    assert settings.ray.address == f"http://{name}-head-svc.{namespace}.svc:8265"
    (worker,) = of_kind("Deployment")
    pod = worker["spec"]["template"]["spec"]
    (volume,), (mount,) = pod["volumes"], pod["containers"][0]["volumeMounts"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert mount["name"] == volume["name"]
    assert mount["subPath"] in config["data"]
    assert mount["mountPath"] == document("prefect.yaml")["definitions"]["config"]["config"]


def test_the_workers_secrets_are_references() -> None:
    (worker,) = of_kind("Deployment")
    env = {e["name"]: e for e in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    (cluster,) = of_kind("RayCluster")
    # KubeRay puts the token into a Secret of the cluster's name.
    token = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert token == {"name": cluster["metadata"]["name"], "key": "auth_token"}
    # A server of one's own asks for Basic; a key is sent as Bearer, which it refuses.
    made = "create secret generic latentlake-prefect --from-env-file=FILE"
    auth = env["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    assert auth["name"] in made
    assert "PREFECT_API_KEY" not in env
    for page in (
        INFRA / "README.md",
        ROOT / "docs" / "clusters.md",
        FOLDER / "prefect-worker.yaml",
    ):
        assert made in page.read_text()
    for page in (ROOT / "docs" / "clusters.md", FOLDER / "prefect-worker.yaml"):
        assert f"{auth['key']}=USER:PASSWORD" in page.read_text()


def test_labels_select_the_pods_of_the_deployment() -> None:
    (worker,) = of_kind("Deployment")
    chosen = worker["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= worker["spec"]["template"]["metadata"]["labels"].items()
    ports = {p["name"] for c in containers(worker) for p in c["ports"]}
    (container,) = containers(worker)
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_the_ray_job_takes_no_more_workers_than_its_cluster_may_have() -> None:
    (job,) = of_kind("RayJob")
    words = job["spec"]["entrypoint"].split()
    asked = int(words[words.index("--workers") + 1])
    assert asked <= sum(g["maxReplicas"] for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    assert words[words.index("--ray-address") + 1] == "auto"
    assert job["spec"]["shutdownAfterJobFinishes"] is True

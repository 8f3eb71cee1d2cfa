"""The cluster launcher's file by Ray's own validator, and the policies by what they allow."""

from __future__ import annotations

import ast
import copy
import fnmatch
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from flows.nightly.settings import load_nightly
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.search.index import index_folder
from tests.unit.infra.files import INFRA, ROOT, document

CLUSTER = document("aws/ray-cluster.yaml")
TYPES: dict[str, dict[str, Any]] = CLUSTER["available_node_types"]


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    made = prepare_config(copy.deepcopy(config))
    validate_config(made)
    return made


def test_ray_accepts_it() -> None:
    made = prepared(CLUSTER)
    assert {name: held["max_workers"] for name, held in made["available_node_types"].items()} == {
        "head": 0, "cpu": 8, "gpu": 4,
    }  # fmt: skip


@pytest.mark.parametrize("key", ["dockerr", "max_worker", "available_nodes"])
def test_ray_refuses_a_key_that_it_has_not(key: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        prepared(CLUSTER | {key: {}})


def test_ray_refuses_a_head_that_is_no_node_type() -> None:
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        prepared(CLUSTER | {"head_node_type": "haed"})


def test_nothing_is_installed_on_the_machines() -> None:
    """Ray's defaults would install a Ray of another version."""
    made = prepared(CLUSTER)
    for key in ("initialization_commands", "setup_commands", "head_setup_commands",
                "worker_setup_commands"):  # fmt: skip
        assert made[key] == [], key


def test_node_configs_are_requests_that_ec2_knows() -> None:
    """By botocore's model of RunInstances, which checks every key and type."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for name, held in TYPES.items():
        request = {**held["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    wrong = {
        **TYPES["gpu"]["node_config"],
        "InstanceMarketOption": {},
        "MinCount": 1,
        "MaxCount": 1,
    }
    assert ParamValidator().validate(wrong, shape).has_errors()


def test_the_head_is_on_demand_and_gpus_are_spot() -> None:
    spot = {n: t["node_config"].get("InstanceMarketOptions") for n, t in TYPES.items()}
    assert spot == {"head": None, "cpu": None, "gpu": {"MarketType": "spot"}}
    assert CLUSTER["head_node_type"] == "head"
    assert CLUSTER["max_workers"] >= sum(t["max_workers"] for t in TYPES.values())
    assert all(t["min_workers"] == 0 for t in TYPES.values())
    assert CLUSTER["idle_timeout_minutes"] > 0


def test_machines_have_roles_and_no_keys() -> None:
    profiles = {n: t["node_config"]["IamInstanceProfile"]["Arn"] for n, t in TYPES.items()}
    assert profiles["cpu"] == profiles["gpu"] != profiles["head"]
    assert all(":instance-profile/" in arn for arn in profiles.values())
    text = (INFRA / "aws" / "ray-cluster.yaml").read_text()
    assert "AWS_" not in text
    assert set(CLUSTER["auth"]) == {"ssh_user"}


def test_each_type_has_its_image() -> None:
    tags = {n: t.get("docker", {}).get("worker_image", "") for n, t in TYPES.items()}
    assert tags["cpu"].endswith("-cpu")
    assert tags["gpu"].endswith("-cuda")
    assert CLUSTER["docker"]["image"].endswith("-aws")
    # Ray runs `bash` in it, after the image's entrypoint.
    assert "--entrypoint=env" in CLUSTER["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]


PIPELINE = document("aws/policy-pipeline.json")
READERS = document("aws/policy-readers.json")
SETTINGS = load_nightly(str(INFRA / "nightly.yaml"))


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def allows(policy: dict[str, Any], action: str, uri: str) -> bool:
    """Whether a policy allows an action on an object, or a listing of a prefix, as IAM decides."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    is_list = action == "s3:ListBucket"
    resource = f"arn:aws:s3:::{bucket}" if is_list else f"arn:aws:s3:::{bucket}/{key}"
    return decided(policy, action, resource, key if is_list else None)


def decided(policy: dict[str, Any], action: str, resource: str, prefix: str | None) -> bool:
    """prefix: that the request has; None for one without, such as GET and HEAD of an object."""
    for each in policy["Statement"]:
        assert each["Effect"] == "Allow"
        fits = any(fnmatch.fnmatchcase(resource, pattern) for pattern in listed(each["Resource"]))
        if action not in listed(each["Action"]) or not fits:
            continue
        condition = each.get("Condition", {})
        prefixes = condition.get("StringLike", {}).get("s3:prefix")
        assert set(condition) <= {"StringLike"}
        if not prefixes:
            return True
        # A condition on a key that the request does not have is not met.
        if prefix is not None and any(fnmatch.fnmatchcase(prefix, p) for p in listed(prefixes)):
            return True
    return False


def answer_of_missing(policy: dict[str, Any], uri: str) -> int:
    """What S3 answers to GET and HEAD of a key that is not there: 403 to who may not list."""
    bucket = uri.removeprefix("s3://").split("/")[0]
    may_list = decided(policy, "s3:ListBucket", f"arn:aws:s3:::{bucket}", None)
    return 404 if may_list and allows(policy, "s3:GetObject", uri) else 403


@pytest.mark.parametrize("policy", [PIPELINE, READERS], ids=["pipeline", "readers"])
def test_policies_name_actions_and_resources(policy: dict[str, Any]) -> None:
    assert policy["Version"] == "2012-10-17"
    for each in policy["Statement"]:
        # Without a condition: see test_a_listing_by_prefix_hides_that_a_key_is_missing.
        assert set(each) == {"Sid", "Effect", "Action", "Resource"}
        assert not any("*" in action for action in listed(each["Action"]))
        for resource in listed(each["Resource"]):
            bucket, _, rest = resource.removeprefix("arn:aws:s3:::").partition("/")
            assert resource.startswith("arn:aws:s3:::")
            assert "*" not in bucket
            assert rest == "" or rest.endswith("/*")


# What each call of the storage module asks of S3. s3fs and deltalake write large objects in parts.
WRITE = {"s3:PutObject", "s3:AbortMultipartUpload"}
ASKS = {
    "ls": {"s3:ListBucket"},
    "find": {"s3:ListBucket"},
    "walk": {"s3:ListBucket"},
    "glob": {"s3:ListBucket"},
    "exists": {"s3:GetObject", "s3:ListBucket"},
    "info": {"s3:GetObject", "s3:ListBucket"},
    "isdir": {"s3:ListBucket"},
    "isfile": {"s3:GetObject", "s3:ListBucket"},
    "cat_file": {"s3:GetObject"},
    "cat_ranges": {"s3:GetObject"},
    "open": {"s3:GetObject"},
    "pipe_file": WRITE,
    "rm_file": {"s3:DeleteObject"},
    "rm": {"s3:ListBucket", "s3:DeleteObject"},
    "list_objects_v2": {"s3:ListBucket"},
    "get_object": {"s3:GetObject"},
}
OF_NO_STORE = {"unstrip_protocol", "_strip_protocol", "loop", "call_s3"}
DELTALAKE = {"s3:ListBucket", "s3:GetObject", "s3:DeleteObject"} | WRITE


def calls_of_storage() -> set[str]:
    """What the product calls of fsspec's filesystems (`fs`), and of S3 through them."""
    found = set()
    for path in [path for package in ("jobs", "flows") for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fs":
                found.add(node.attr)
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in ("call_s3", "_call_s3"):
                found.add(ast.literal_eval(node.args[0]))
    return found - OF_NO_STORE


def test_the_pipeline_may_make_every_call_that_the_code_makes() -> None:
    calls = calls_of_storage()
    assert {"ls", "cat_file", "pipe_file", "rm", "open", "list_objects_v2"} <= calls
    asked = DELTALAKE.union(*(ASKS[call] for call in calls))
    lake = LakePaths(SETTINGS.lake)
    for place in (lake.dataset("d", "images"), lake.models, lake.units("j"), lake.catalog("runs")):
        assert all(allows(PIPELINE, action, f"{place}/a.parquet") for action in asked), place
        assert allows(PIPELINE, "s3:ListBucket", place)
    assert not [
        a for each in PIPELINE["Statement"] for a in listed(each["Action"]) if a not in asked
    ]


def places_of_tables() -> list[str]:
    lake = LakePaths(SETTINGS.lake)
    tables = [lake.dataset("d", "images"), lake.model("m", "embeddings"), lake.catalog("runs")]
    return [*tables, lake.bundle("m", "v"), index_folder(lake, "m", "v")]


def test_a_missing_key_is_missing_and_not_forbidden() -> None:
    """The first run asks for tables that are not there yet; a source's file may go meanwhile."""
    lake = LakePaths(SETTINGS.lake)
    kept = [*places_of_tables(), lake.units("j"), lake.run("r"), join(lake.uri, "config")]
    source = SETTINGS.stage.source.replace("*", "a")
    for uri in [*(f"{place}/_delta_log/_last_checkpoint" for place in kept), source]:
        assert answer_of_missing(PIPELINE, uri) == 404, uri
    for place in places_of_tables():
        assert answer_of_missing(READERS, f"{place}/a.json") == 404, place
    assert answer_of_missing(READERS, source) == 403
    assert answer_of_missing(PIPELINE, "s3://elsewhere/production/a") == 403


@pytest.mark.parametrize("policy", [PIPELINE, READERS], ids=["pipeline", "readers"])
def test_a_listing_by_prefix_hides_that_a_key_is_missing(policy: dict[str, Any]) -> None:
    by_prefix = copy.deepcopy(policy)
    by_prefix["Statement"][0]["Condition"] = {"StringLike": {"s3:prefix": ["production/*"]}}
    for place in places_of_tables():
        assert allows(by_prefix, "s3:ListBucket", f"{place}/")
        assert allows(by_prefix, "s3:GetObject", f"{place}/a.json")
        assert answer_of_missing(by_prefix, f"{place}/a.json") == 403
    assert not allows(by_prefix, "s3:ListBucket", SETTINGS.lake.rsplit("/", 1)[0] + "/other/")


def test_the_pipeline_only_reads_its_source_and_nothing_else() -> None:
    source = SETTINGS.stage.source.replace("*", "a")
    assert allows(PIPELINE, "s3:GetObject", source)
    assert allows(PIPELINE, "s3:ListBucket", source.rsplit("/", 1)[0] + "/")
    for action in ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"):
        assert not allows(PIPELINE, action, source)
    bucket = SETTINGS.lake.rsplit("/", 1)[0]
    for beside in (f"{bucket}/other/a", f"{bucket}/production-2/a", "s3://elsewhere/production/a"):
        for action in sorted(DELTALAKE - {"s3:ListBucket"}):
            assert not allows(PIPELINE, action, beside), (action, beside)
    assert not allows(PIPELINE, "s3:ListBucket", "s3://elsewhere/production/")
    # Listed as a whole: the lake's bucket has to be its own.
    assert bucket.split("/")[2] != source.split("/")[2]


def test_readers_read_the_tables_and_write_nothing() -> None:
    lake = LakePaths(SETTINGS.lake)
    for place in places_of_tables():
        assert allows(READERS, "s3:GetObject", f"{place}/_delta_log/0.json")
        assert allows(READERS, "s3:ListBucket", f"{place}/_delta_log/")
    given = {action for each in READERS["Statement"] for action in listed(each["Action"])}
    assert given == {"s3:GetObject", "s3:ListBucket"}
    for hidden in (lake.units("j"), lake.run("r"), SETTINGS.stage.source):
        assert not allows(READERS, "s3:GetObject", f"{hidden}/a")
    assert not allows(READERS, "s3:ListBucket", SETTINGS.stage.source.rsplit("/", 1)[0] + "/")

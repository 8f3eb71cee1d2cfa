"""No credential is part of a URI: not of a flow's parameter, a config, or a command line."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from flows.nightly.settings import load_nightly
from jobs.cluster.settings import RaySettings
from jobs.dispatch.request import JobRequest
from jobs.dispatch.submit import run_on_cluster
from jobs.errors import InputError
from jobs.lake.storage import resolve_source, resolve_uri
from jobs.lake.storage_errors import explain
from jobs.lake.uri import refuse_credentials, without_keys
from jobs.settings import load_yaml
from jobs.stage.settings import StageSettings
from tests.helpers import run_cli
from tests.limits import SOON_S

WITH_A_SECRET = [
    "s3://AKEY:HUSH@bucket/p",
    "s3://AKEY:HU/SH+x@bucket/p",  # as secrets of AWS are
    "s3://AKEY:HU/SH@bucket",
    "S3://AKEY:HUSH@bucket/p",
    " s3://AKEY:HUSH@bucket/p",
    "s3://AKEY@bucket/p",
    "https://someone:HUSH@host/a.tar",
    "https://HUSH@host:8443?x=1",
    "ftp://someone:HUSH@host/a",
    "abfs://container:HUSH@account.dfs.core.windows.net/p",
]
WITHOUT = [
    "s3://bucket/some:one@home/a?b#c@d",
    "s3://arn:aws:s3:eu-central-1:111122223333:accesspoint:name/p",
    "https://host:8443/a@b.tar",
    "https://host?at=@",
    "abfs://container@account.dfs.core.windows.net/p",
    "hf://datasets/who/what@main/a.parquet",
    "file:///home/a:b@c/x",
    "a:b@c/x",
    "/data/a@b",
]


def secrets_in(text: str) -> list[str]:
    return [word for word in ("HUSH", "HU/", "SH+", "AKEY", "someone") if word in text]


@pytest.mark.parametrize("ask", [resolve_uri, resolve_source, refuse_credentials])
@pytest.mark.parametrize("uri", WITH_A_SECRET)
def test_a_uri_with_a_secret_is_refused_and_not_repeated(
    uri: str, ask: Callable[[str], Any]
) -> None:
    with pytest.raises(InputError, match=r"environment .*profile") as refused:
        ask(uri)
    told = "".join(traceback.format_exception_only(refused.value))
    assert secrets_in(told) == []
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize("uri", WITHOUT)
def test_other_signs_are_no_secrets(uri: str) -> None:
    refuse_credentials(uri)


def test_a_config_is_not_read_from_one() -> None:
    with pytest.raises(InputError, match="profile") as refused:
        load_yaml(WITH_A_SECRET[0])
    assert secrets_in(str(refused.value)) == []


def test_a_source_with_one_is_not_sent_to_a_cluster() -> None:
    far = RaySettings(address="http://127.0.0.1:9")
    staged = StageSettings(source=WITH_A_SECRET[0], dataset="d")
    with pytest.raises(InputError, match="profile"):
        run_on_cluster(JobRequest.of(staged, "s3://b/lake", "2026-01-01", far))


def test_the_command_line_says_so() -> None:
    refused = run_cli("list", "--lake", WITH_A_SECRET[0])
    assert refused.code == 2
    assert "AWS_PROFILE" in refused.err
    assert secrets_in(refused.err + refused.out) == []
    assert "Traceback" not in refused.err


def test_a_flows_parameter_with_one_is_refused(tmp_path) -> None:
    from flows.nightly.run_context import opened

    config = tmp_path / "n.yaml"
    config.write_text(
        "stage: {source: a, dataset: d}\ntrain: {dataset: d, model: d}\n"
        "embed: {dataset: d, model: d}\n"
    )
    with pytest.raises(InputError, match="profile") as refused:
        opened(str(config), None, WITH_A_SECRET[0])
    assert secrets_in(str(refused.value)) == []


SIGNED = [
    "https://b.s3.amazonaws.com/a.tar?X-Amz-Credential=AKEY%2F1&X-Amz-Signature=HUSH",
    "https://b.s3.amazonaws.com/a.tar?AWSAccessKeyId=AKEY&Expires=1&Signature=HUSH%3D",
    "https://storage.googleapis.com/b/a.tar?X-Goog-Signature=HUSH",
    "https://a.blob.core.windows.net/c/a.tar?sv=2022-11-02&se=2030-01-01&sig=HUSH%3D",
    "HTTPS://host/a.tar?page=1&access_token=HUSH",
    "http://host/a.tar?api_key=HUSH",
    "https://host/a.tar?password=HUSH#top",
    "https://host/a.tar#token=HUSH",
    "https://d111.cloudfront.net/a?Policy=HUSH&Key-Pair-Id=AKEY",
    "az://container/a?sig=HUSH",
    "gs://bucket/a?token=HUSH",
]
HIDDEN = [
    *SIGNED,
    *WITH_A_SECRET[1:3],
    *WITH_A_SECRET[5:],
    "http://someone:HUSH@host:8265",
    "http://someone:HU@SH+x@host",
    "s3://AKEY:HU/SH+@x@bucket",
    "https://HUSH@github.com/x",
    "postgresql://someone:HUSH@host/db",
    "https://host/a?key=HUSH",
]


@pytest.mark.parametrize("ask", [resolve_source, refuse_credentials])
@pytest.mark.parametrize("uri", SIGNED)
def test_a_signed_url_is_refused_and_not_repeated(uri: str, ask: Callable[[str], Any]) -> None:
    with pytest.raises(InputError, match="is signed, or has a key in it") as refused:
        ask(uri)
    assert secrets_in("".join(traceback.format_exception(refused.value))) == []


@pytest.mark.parametrize("uri", HIDDEN)
def test_whoever_tells_of_one_its_key_is_cut_out(uri: str, caplog, monkeypatch) -> None:
    """A store's client, an exception of Ray's: messages that are not ours."""
    told = f"403, message='Forbidden', url=URL('{uri}') (<{uri}>)"
    assert secrets_in(without_keys(told)) == []
    assert "403, message='Forbidden'" in without_keys(told)
    assert secrets_in(str(explain(OSError(told), "https://host/a", "read"))) == []
    logging.getLogger("latentlake").warning("asked %s", uri)
    assert secrets_in(caplog.text) == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", uri)
    assert secrets_in(str(explain(OSError("no"), "s3://b/a", "read"))) == []


@pytest.mark.parametrize("text", ["://" + ":" * 200_000, "s3://:" * 40_000, "a://b:" * 40_000])
def test_a_long_message_is_looked_through_at_once(text: str) -> None:
    started = time.process_time()
    without_keys(text)
    assert time.process_time() - started < SOON_S


def test_text_without_a_key_stays_as_it_is() -> None:
    for text in (*WITHOUT, "a: b@c", "see https://host/a?b=c&page=2 and x@y.z", "key=HUSH"):
        assert without_keys(text) == text


@pytest.mark.parametrize("address", ["http://someone:HUSH@h:8265", "someone:HUSH@h:6379"])
def test_a_cluster_s_address_with_a_password_is_refused(tmp_path, address: str) -> None:
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN") as refused:
        RaySettings(address=address)
    assert secrets_in(str(refused.value)) == []
    words = ("--source", str(tmp_path), "--dataset", "d", "--ray-address", address)
    told = run_cli("stage", *words, "--lake", str(tmp_path / "lake"))
    assert told.code == 2
    assert "RAY_AUTH_TOKEN" in told.err
    assert secrets_in(told.err + told.out) == []
    config = tmp_path / "n.yaml"
    config.write_text(
        "stage: {source: a, dataset: d}\ntrain: {dataset: d, model: d}\n"
        f"embed: {{dataset: d, model: d}}\nray: {{address: '{address}'}}\n"
    )
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN") as refused_config:
        load_nightly(str(config))
    assert secrets_in("".join(traceback.format_exception(refused_config.value))) == []

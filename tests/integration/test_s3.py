"""stage → train → embed → query against a real S3 server, as a user runs them."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from jobs.engine import runner
from jobs.lake.paths import LakePaths
from tests.command_process import CommandProcess
from tests.helpers import (
    ROOT,
    TINY_STAGE,
    TINY_TRAIN,
    S3Server,
    image_bytes,
    ok,
    run_cli,
    write_source,
)
from tests.inline import InlineStage

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def everything(
    s3_server: S3Server, s3_commands: CommandProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """Both source and lake on S3; everything that the commands printed."""
    folder = tmp_path_factory.mktemp("s3")
    write_source(folder / "a.parquet", range(300))
    fs = _fs(s3_server)
    fs.put_file(str(folder / "a.parquet"), "lake/incoming/a.parquet")
    lake = "s3://lake/one"
    printed = []

    def run(*arguments: str):
        ran = ok(s3_commands.run(*arguments, "--lake", lake, "--json"))
        printed.append(ran.out + ran.err)
        return ran.json

    stage = ("stage", "--source", "s3://lake/incoming/*.parquet", "--dataset", "d", *TINY_STAGE)
    train = ("train", "--dataset", "d", "--model", "m", *TINY_TRAIN)
    embed = ("embed", "--dataset", "d", "--model", "m", "--reconstructions", "all")
    return {
        "first": [run(*stage), run(*train), run(*embed)],
        "again": [run(*stage), run(*train), run(*embed)],
        "anomalies": run("query", "anomalies", "--model", "m", "--top", "5"),
        "list": run("list"),
        "printed": printed,
        "run": run,
    }


def _fs(server: S3Server):
    key, secret = server.pipeline
    return fsspec.filesystem(
        "s3", key=key, secret=secret, endpoint_url=server.endpoint, skip_instance_cache=True
    )


def test_the_whole_way_on_s3_and_a_rerun_with_nothing_to_do(everything) -> None:
    stage, train, embed = everything["first"]
    assert stage["counts"]["staged"] == 300
    assert train["counts"]["version"]
    assert embed["counts"]["embedded"] == 300
    assert [report["units"] for report in everything["again"]] == [0, 0, 0]
    run = everything["run"]
    counts = run(
        "query",
        "sql",
        "SELECT count(*) AS n, count(DISTINCT image_id) AS d FROM embeddings JOIN images "
        "USING (image_id) JOIN reconstructions USING (image_id)",
    )
    assert counts == [{"n": 300, "d": 300}]


def test_queries_answer_from_s3(everything) -> None:
    anomalies = everything["anomalies"]
    assert len(anomalies) == 5
    scores = [row["neg_elbo"] for row in anomalies]
    assert scores == sorted(scores, reverse=True)
    near = everything["run"](
        "query", "neighbours", "--model", "m", "--image-id", anomalies[0]["image_id"], "-k", "3"
    )
    assert len(near) == 3
    assert everything["list"]["datasets"] == [{"dataset": "d", "images_version": 1, "images": 300}]


def test_nothing_is_left_of_finished_jobs_and_no_secret_anywhere(
    everything, s3_server: S3Server
) -> None:
    fs = _fs(s3_server)
    assert [path for path in fs.find("lake/one") if "/units/" in path] == []
    secrets = [part for pair in (s3_server.pipeline, s3_server.reader) for part in pair]
    for text in everything["printed"]:
        assert not any(secret in text for secret in secrets)
    for path in fs.find("lake/one"):
        data = fs.cat_file(path)
        assert not any(secret.encode() in data for secret in secrets), path


def test_the_tables_on_s3_hold_what_a_local_lake_holds(
    everything, s3_server: S3Server, tmp_path: Path
) -> None:
    write_source(tmp_path / "a.parquet", range(300))
    runner.run(InlineStage(LakePaths((tmp_path / "lake").as_uri()), tmp_path / "a.parquet"))
    sql = "SELECT image_id, pixels_hash, split, label, source_row FROM images ORDER BY image_id"
    local = ok(run_cli("query", "sql", sql, "--json", "--lake", tmp_path / "lake")).json
    assert local == everything["run"]("query", "sql", sql)


def test_the_readme_commands_on_ones_own_images_run_as_written(
    s3_server: S3Server, s3_commands: CommandProcess, tmp_path: Path
) -> None:
    """With a bucket of that name, and a lake in the current folder."""
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^latentlake (?:stage|train|embed|nightly) .*$", readme, re.MULTILINE)
    queries = re.findall(r"^latentlake query .*--model photos.*$", readme, re.MULTILINE)
    assert [line.split()[1] for line in commands] == ["stage", "train", "embed", "nightly"]
    fs = _fs(s3_server)
    fs.mkdir("bucket")
    write_source(tmp_path / "a.parquet", range(180), broken=[9])
    fs.put_file(str(tmp_path / "a.parquet"), "bucket/photos/a.parquet")
    (yaml,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "nightly.yaml").write_text(yaml)
    # What the reader has of his own: an image, and a label.
    (tmp_path / "some.jpg").write_bytes(image_bytes([3])[0])
    queries = [line.replace("--label cat", "--label 3") for line in queries]
    assert [line.split()[2] for line in queries] == [
        *("anomalies", "anomalies", "neighbours", "duplicates", "outliers-of")
    ]
    printed = ""
    for line in [*commands[:3], *queries]:
        ran = ok(s3_commands.run(*shlex.split(line)[1:], cwd=tmp_path))
        printed += ran.out + ran.err
    # New images for the night.
    write_source(tmp_path / "b.parquet", range(180, 210))
    fs.put_file(str(tmp_path / "b.parquet"), "bucket/photos/b.parquet")
    ran = ok(s3_commands.run(*shlex.split(commands[3])[1:], "--json", cwd=tmp_path))
    assert [report["job"] for report in ran.json] == [*("stage", "evaluate", "embed", "drift")]
    assert ran.json[0]["counts"]["staged"] == ran.json[2]["counts"]["embedded"] == 30
    # No credential has reached Prefect's database, the output, or the lake.
    homes = (s3_commands.prefect_home, tmp_path / "lake")
    written = [path.read_bytes() for folder in homes for path in _files(folder)]
    assert any(b"summary-photos" in data for data in written)
    for secret in s3_server.pipeline:
        assert secret not in printed + ran.out + ran.err
        assert not any(secret.encode() in data for data in written)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_wrong_and_read_only_credentials_end_with_2(s3_server: S3Server, tmp_path: Path) -> None:
    write_source(tmp_path / "a.parquet", range(10))
    stage = ("stage", "--source", tmp_path / "a.parquet", "--dataset", "x", *TINY_STAGE)
    for who in (("nobodys-key", "nobodys-secret"), s3_server.reader):
        ran = run_cli(*stage, "--lake", "s3://lake/two", env=s3_server.environment(who))
        assert ran.code == 2, ran.err
        assert "access denied" in ran.err
        assert "credentials" in ran.err
        assert "Traceback" not in ran.err
        assert not any(part in ran.err + ran.out for part in who)
    assert not _fs(s3_server).exists("lake/two")


def test_no_credentials_at_all_end_with_2(s3_server: S3Server, tmp_path: Path) -> None:
    env = s3_server.environment()
    del env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
    ran = run_cli("list", "--lake", "s3://lake/one", env=env)
    assert ran.code == 2, ran.err
    assert "credentials" in ran.err
    assert "Traceback" not in ran.err


def test_credentials_from_the_usual_files(everything, s3_server: S3Server, tmp_path) -> None:
    env = s3_server.environment()
    key, secret = env.pop("AWS_ACCESS_KEY_ID"), env.pop("AWS_SECRET_ACCESS_KEY")
    files = tmp_path / "credentials"
    files.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    env["AWS_SHARED_CREDENTIALS_FILE"] = str(files)
    ran = ok(run_cli("list", "--json", "--lake", "s3://lake/one", env=env))
    assert ran.json["datasets"][0]["images"] == 300


def test_a_bucket_that_does_not_exist_is_named(s3_server: S3Server, tmp_path: Path) -> None:
    write_source(tmp_path / "a.parquet", range(10))
    stage = ("stage", "--source", tmp_path / "a.parquet", "--dataset", "x", *TINY_STAGE)
    ran = run_cli(*stage, "--lake", "s3://no-such-bucket/x", env=s3_server.environment())
    assert ran.code == 2, ran.err
    assert "bucket does not exist" in ran.err


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_an_endpoint_that_does_not_answer_ends_with_1(
    s3_server: S3Server, silent_endpoint: str, tmp_path: Path, kind: str
) -> None:
    endpoint = silent_endpoint if kind == "silent" else "http://127.0.0.1:9"
    write_source(tmp_path / "a.parquet", range(10))
    env = s3_server.environment() | {"AWS_ENDPOINT_URL": endpoint}
    stage = ("stage", "--source", tmp_path / "a.parquet", "--dataset", "x", *TINY_STAGE)
    ran = run_cli(*stage, "--lake", "s3://lake/three", env=env)
    assert ran.code == 1, ran.err
    assert endpoint in ran.err
    assert "Traceback" not in ran.err

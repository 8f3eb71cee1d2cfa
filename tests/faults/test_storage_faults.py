"""An S3 server that fails in every way we know, under the command line.

The contract: in bounded time a job either ends well, with the tables of an undisturbed run, or
ends with one clear line, with nothing half-published to be seen, and a rerun completes it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator

import fsspec
import pyarrow as pa
import pytest

from jobs.engine.runner import run as run_job
from jobs.lake import storage
from jobs.lake.paths import LakePaths
from jobs.query import views
from tests.command_process import CommandProcess
from tests.fault_proxy import Fault, FaultProxy, Rule, fault_proxy, list_fails, writes
from tests.helpers import TINY_STAGE, Ran, S3Server, ok, write_source
from tests.inline import InlineTrain
from tests.rounds import ROUNDS
from tests.s3_server import reached

pytestmark = pytest.mark.faults

SEEDS = max(1, ROUNDS // 2)
NIGHT = ("--night", "2026-01-01")
SOURCE = "lake/faults-source"
STAGE = ("stage", "--dataset", "d", "--source", f"s3://{SOURCE}/*.parquet", *TINY_STAGE, *NIGHT)
EMBED = ("embed", "--dataset", "d", "--model", "m", "--alpha", "0.9", *NIGHT)
PUBLISHES = {
    "stage": ("images", "sources", "quarantine"),
    "embed": ("embeddings", "anomalies", "batches"),
}
ORDER = {
    "sources": "source_uri, source_row",
    "quarantine": "source_uri, source_row",
    "runs": "job_id",
    "batches": "batch",
}

Tables = dict[str, pa.Table]


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """Lakes of a run through a proxy without rules, and what it sent.

    All commands run in one process with one Ray, whose clients all go through one proxy.
    """

    commands: CommandProcess
    proxy: FaultProxy
    fs: fsspec.AbstractFileSystem
    lakes: dict[str, str]  # before and after each job
    tables: dict[str, Tables]  # after each job
    requests: dict[str, int]
    agents: set[str]


@pytest.fixture(scope="module")
def server(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, which this process's own storage functions reach as well."""
    with reached(s3_server):
        yield s3_server


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def commands(
    server: S3Server, proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandProcess]:
    env = server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}
    made = CommandProcess(tmp_path_factory.mktemp("commands"), env)
    yield made
    made.end()


@pytest.fixture(scope="module")
def undisturbed(
    commands: CommandProcess, proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("storage-faults")
    rows = [*range(280), *range(20)]  # some come twice
    write_source(folder / "a.parquet", rows, broken=[11, 150])
    fs, _ = storage.filesystem("s3://lake")
    fs.put_file(str(folder / "a.parquet"), f"{SOURCE}/a.parquet")
    lakes = {name: _new_lake() for name in ("stage", "embed", "after")}
    found = Undisturbed(commands, proxy, fs, lakes, {}, {}, set())
    lake = lakes["after"]
    for job, command in (("stage", STAGE), ("embed", EMBED)):
        _copy(fs, lake, lakes[job])
        proxy.begin()
        ok(_run(commands, command, lake))
        found.requests[job] = len(proxy.requests)
        found.agents.update(seen.agent for seen in proxy.requests)
        found.tables[job] = _tables(lake, job)
        if job == "stage":
            run_job(InlineTrain(LakePaths(lake)))
    return found


def _new_lake() -> str:
    return f"s3://lake/faults-{uuid.uuid4().hex[:8]}"


def _copy(fs: fsspec.AbstractFileSystem, of: str, to: str) -> None:
    for path in fs.find(of):
        fs.pipe_file(path.replace(of.removeprefix("s3://"), to), fs.cat_file(path))


def _run(commands: CommandProcess, command: tuple[str, ...], lake: str) -> Ran:
    """In bounded time: a command that hangs fails."""
    return commands.run(*command, "--lake", lake, "--workers", "2")


def _tables(lake: str, job: str) -> Tables:
    return {
        name: views.sql(
            LakePaths(lake), f"SELECT * FROM {name} ORDER BY {ORDER.get(name, 'image_id')}"
        )
        for name in PUBLISHES[job]
    }


def _equal(found: Tables, expected: Tables) -> bool:
    return all(found[name].equals(expected[name]) for name in expected)


def _require_contract(undisturbed: Undisturbed, job: str, rules: list[Rule], seed: int = 0) -> Ran:
    """Runs the job through the rules, and holds it to what the module's docstring says."""
    command = {"stage": STAGE, "embed": EMBED}[job]
    lake, expected = _new_lake(), undisturbed.tables[job]
    _copy(undisturbed.fs, undisturbed.lakes[job], lake)
    undisturbed.proxy.begin(rules, seed)
    ran = _run(undisturbed.commands, command, lake)
    assert undisturbed.proxy.injected, "no fault was injected"
    undisturbed.proxy.begin()
    if ran.code != 0:
        _require_one_clear_line(ran)
        # All of it may be published, where the fault came after; never a part.
        seen = _tables(lake, job)
        nothing = all(table.num_rows == 0 for table in seen.values())
        assert nothing or _equal(seen, expected), {n: t.num_rows for n, t in seen.items()}
        ok(_run(undisturbed.commands, command, lake))
    found = _tables(lake, job)
    for name, table in expected.items():
        assert found[name].equals(table), f"{name} differs"
    return ran


def _require_one_clear_line(ran: Ran) -> None:
    assert ran.code in (1, 2), ran.err
    assert "Traceback" not in ran.err, ran.err
    told = [line for line in ran.err.splitlines() if line.startswith("latentlake: ")]
    assert told == ran.err.splitlines()[-1:], ran.err
    assert told[0].isprintable(), told


def test_both_clients_go_through_the_proxy(undisturbed: Undisturbed) -> None:
    """s3fs, of jobs/lake/storage.py, and the native one inside deltalake."""
    assert any("aiobotocore" in agent for agent in undisturbed.agents)
    assert any("object_store" in agent for agent in undisturbed.agents)


def commits(method: str, path: str, query: str) -> bool:
    """Puts of new versions of Delta tables."""
    return method == "PUT" and "/_delta_log/" in path


def first_of_each_path(only: Callable[[str, str, str], bool]) -> Callable[[str, str, str], bool]:
    seen: set[str] = set()

    def picks(method: str, path: str, query: str) -> bool:
        if not only(method, path, query) or path in seen:
            return False
        seen.add(path)
        return True

    return picks


STAGE_CASES = {
    "slow_down": lambda: [Rule("slow_down", probability=0.05)],
    "internal_error": lambda: [Rule("internal_error", probability=0.05)],
    "reset": lambda: [Rule("reset", probability=0.05)],
    "truncated": lambda: [Rule("truncated", probability=0.05)],
    "lost_answer": lambda: [Rule("lost_answer", probability=0.05)],
}
# What must not be noticed at all.
MILD_CASES = {
    "every first write loses its answer": lambda: [
        Rule("lost_answer", only=first_of_each_path(writes))
    ],
    "every commit loses its answer": lambda: [Rule("lost_answer", only=commits)],
    "latency": lambda: [Rule("latency", every=5, seconds=2.0, count=6)],
    "a list fails once": lambda: [list_fails(page=5)],
    "a read stalls": lambda: [Rule("stall", skip=20, count=1, seconds=60.0)],
}
EMBED_CASES = {
    "all kinds": lambda: [
        Rule(fault, probability=0.015)
        for fault in ("slow_down", "internal_error", "reset", "truncated", "lost_answer")
    ],
}


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("case", STAGE_CASES)
def test_stage_among_faults(undisturbed: Undisturbed, case: str, seed: int) -> None:
    _require_contract(undisturbed, "stage", STAGE_CASES[case](), seed)


@pytest.mark.parametrize("case", MILD_CASES)
def test_stage_gets_over_what_is_mild(undisturbed: Undisturbed, case: str) -> None:
    ok(_require_contract(undisturbed, "stage", MILD_CASES[case]()))


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("case", EMBED_CASES)
def test_embed_among_faults(undisturbed: Undisturbed, case: str, seed: int) -> None:
    _require_contract(undisturbed, "embed", EMBED_CASES[case](), seed)


@pytest.mark.parametrize("job", ["stage", "embed"][:SEEDS])  # both in `make faults` alone
def test_credentials_that_expire_halfway(undisturbed: Undisturbed, job: str) -> None:
    halfway = undisturbed.requests[job] // 2
    ran = _require_contract(undisturbed, job, [Rule("expired", skip=halfway)])
    assert ran.code == 2, ran.err
    assert "access denied" in ran.err
    assert "credentials" in ran.err


def test_lists_that_always_fail_are_told(undisturbed: Undisturbed) -> None:
    ran = _require_contract(undisturbed, "stage", [list_fails(count=None)])
    assert ran.code == 1, ran.err
    assert "cannot" in ran.err
    assert "list" in ran.err


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("fault", ["internal_error", "reset", "truncated", "expired"])
def test_a_query_is_right_or_says_why_not(
    undisturbed: Undisturbed, fault: Fault, seed: int
) -> None:
    statement = "SELECT image_id, unit_id FROM images ORDER BY image_id"
    # A query makes a dozen requests: every fourth answer, so that some are hit in any order.
    rule = Rule(fault, only=lambda method, path, _: method == "GET", every=4, skip=seed % 4)
    undisturbed.proxy.begin([rule], seed)
    where = ("--json", "--lake", undisturbed.lakes["after"])
    ran = undisturbed.commands.run("query", "sql", statement, *where)
    assert undisturbed.proxy.injected, "no fault was injected"
    undisturbed.proxy.begin()
    if ran.code == 0:
        expected = undisturbed.tables["stage"]["images"].select(["image_id", "unit_id"])
        assert ran.json == expected.to_pylist()
    else:
        _require_one_clear_line(ran)

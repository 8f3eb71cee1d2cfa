"""Seeded damage and malice in a lake's records, logs, bundles and weights.

Each ends in success or a sentence of ours; nothing outside the lake is read or written. A sample in
the suite, 2,000 in `make attack`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.bundles import bundle as bundles
from jobs.datasets import card
from jobs.engine import records, runner
from jobs.errors import LatentlakeError
from jobs.lake.paths import LakePaths
from jobs.maintain.vacuum import vacuum
from jobs.query import api as query_api
from jobs.query import views
from jobs.query.readonly_sql import GuardedViews
from jobs.tables import catalog
from jobs.tables.delta import Snapshot
from tests.helpers import write_source
from tests.inline import InlineCompact, InlineEmbed, InlineStage, InlineTrain
from tests.mutations import Mutation, linked
from tests.watched import watching

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's"),
]
MUTATIONS = int(os.environ.get("LATENTLAKE_MUTATIONS", "40"))
EACH = 20  # a test
LIMIT_S = 120  # that one action may take: it hangs


class Killed(KeyboardInterrupt):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lake`: a trained, embedded night, and a second that was killed in the middle of its commit.
    `outside`: another lake, that nothing may touch."""
    folder = tmp_path_factory.mktemp("hostile")
    write_source(folder / "source" / "a.parquet", range(200))
    lake = LakePaths((folder / "lake").as_uri())
    runner.run(InlineStage(lake, folder / "source"))
    shutil.copytree(folder / "lake", folder / "outside")
    shutil.copy(next((folder / "lake").rglob("*.parquet")), folder / "outside" / "a.parquet")
    runner.run(InlineTrain(lake))
    runner.run(InlineEmbed(lake))
    card.dataset_card(lake, "d")
    write_source(folder / "source" / "b.parquet", range(200, 320))
    waiting = InlineEmbed(lake, night="2026-01-02", redo=True)
    plan = records.save_plan(lake, waiting.plan())
    waiting.execute(plan, list(waiting.units(plan))[:1])
    with killed_after(1), pytest.raises(Killed):
        runner.run(InlineStage(lake, folder / "source", night="2026-01-02"))
    return folder


@contextlib.contextmanager
def killed_after(commits: int) -> Iterator[None]:
    real, left = Snapshot.commit, [commits]

    def commit(self, *arguments, **more):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "commit", commit)
        yield


def actions(lake: LakePaths, source: Path) -> list[Callable[[], object]]:
    """What people do with a lake."""
    model, (version, *_) = "m", catalog.bundle_versions(lake, "m") or ["none"]
    return [
        lambda: runner.run(InlineStage(lake, source, night="2026-01-03")),
        lambda: runner.run(InlineEmbed(lake, night="2026-01-03")),
        lambda: runner.run(InlineEmbed(lake, night="2026-01-02", redo=True)),
        lambda: runner.run(InlineCompact.of(lake)),
        lambda: vacuum(lake, ["d"], ["m"], keep_days=0.0, grace_s=0.0),
        lambda: [views.sql(lake, f"SELECT * FROM {name}") for name in sorted(views.VIEWS)],
        lambda: GuardedViews(lake).ask("SELECT count(*) FROM images", 1, 60.0),
        lambda: [bundles.load(lake, model, version).scorer(), catalog.aliases(lake, model)],
        lambda: query_api.Lake(lake.uri).embeddings("m").anomalies(top=5),
        lambda: card.dataset_card(lake, "d"),
    ]


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("part", range(-(-MUTATIONS // EACH)))
def test_a_changed_lake_ends_in_success_or_a_sentence(
    base: Path, tmp_path: Path, part: int
) -> None:
    wrong = []
    with watching(base / "outside") as outside:
        for number in range(part * EACH, min((part + 1) * EACH, MUTATIONS)):
            root = tmp_path / str(number)
            linked(base / "lake", root)
            outside.touched()
            mutation = Mutation(f"lake-{number}", root, base / "outside")
            lake = LakePaths(root.as_uri())
            try:
                ways = actions(lake, base / "source")
            except LatentlakeError:
                ways = []
            for way in random.Random(number).sample(range(len(ways)), min(4, len(ways))):
                told = ended(ways[way])
                if told:
                    wrong.append(f"{number}, action {way}: {mutation.told}: {told}")
            touched = outside.touched()
            if touched:
                wrong.append(f"{number}: {mutation.told}: outside: {touched[:3]}")
            shutil.rmtree(root)
    assert not wrong, "\n".join(wrong)


def ended(action: Callable[[], object]) -> str:
    """What was wrong with how it ended."""
    try:
        with within(LIMIT_S):
            action()
    except LatentlakeError as error:
        return "" if len(str(error)) < 2000 else f"no sentence: {str(error)[:300]!r}"
    except BaseException as error:  # noqa: BLE001 - a panic of Rust's is none of Exception's
        trace, place = error.__traceback__, ""
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if "/jobs/" in name or "/vae_core/" in name:
                place = f"{name.rsplit('/', 2)[-1]}:{trace.tb_lineno}"
            trace = trace.tb_next
        return f"{type(error).__name__}: {str(error)[:150]!r} at {place}"
    return ""

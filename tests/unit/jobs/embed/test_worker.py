"""What a worker does with the two units that it has in hand."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from jobs.embed import worker as embed_worker
from jobs.embed.worker import EmbedWorker
from jobs.lake.paths import LakePaths
from jobs.lake.storage import join
from jobs.tables.shards import read_shard
from tests.inline import InlineEmbed
from tests.limits import SOON_S
from vae_core.scores.per_image import Scorer


def test_a_unit_is_read_while_another_is_computed_and_none_is_computed_beside_it(
    trained: LakePaths, monkeypatch
) -> None:
    plan = InlineEmbed(trained).plan()
    worker = EmbedWorker(trained, plan.context)
    alone = [worker.execute(unit, "alone") for unit in plan.units]
    read, at_the_model, first = threading.Semaphore(0), threading.Lock(), threading.Lock()
    real_read, real_score = embed_worker.read_span, Scorer.score

    def reading(*arguments):
        rows = real_read(*arguments)
        read.release()
        return rows

    def scoring(self, *arguments):
        assert at_the_model.acquire(blocking=False)
        if first.acquire(blocking=False):
            # Its own, and then that of the other unit.
            assert read.acquire(timeout=SOON_S)
            assert read.acquire(timeout=SOON_S)
        scored = real_score(self, *arguments)
        at_the_model.release()
        return scored

    monkeypatch.setattr(embed_worker, "read_span", reading)
    monkeypatch.setattr(Scorer, "score", scoring)
    with ThreadPoolExecutor(2) as threads:
        paired = list(threads.map(lambda unit: worker.execute(unit, "pair"), plan.units))
    assert first.locked()
    (table,) = (table for table in worker.tables if table.spec.name == "embeddings")
    for one, other in zip(alone, paired, strict=True):
        left, right = (read_shard(join(table.uri, c.outputs[0].path)) for c in (one, other))
        assert left.equals(right)

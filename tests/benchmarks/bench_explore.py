"""`latentlake explore` of 10⁶ × 64 embeddings: what its pages ask, and the memory they take.

Two threads; each round is a process of its own with the page's parts, as a session makes them,
without a browser: what is told is the server's time. Writes `.bench/explore.json`.

    python -m tests.benchmarks.bench_explore [--rounds 5]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from jobs.query.api import Lake
from tests.benchmarks import watched
from tests.benchmarks.bench_query import asked_lake
from tests.benchmarks.rounds import Round, main
from tests.helpers import ROOT

DATASET = "d1000000"


def session_round() -> dict[str, float]:
    """One session in a process of its own."""
    told = f"from tests.benchmarks.bench_explore import session; session({asked_lake().uri!r})"
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def session(uri: str) -> None:
    """Writes what each page took as JSON."""

    from flows.explore.anomalies import RANKED, Anomalies
    from flows.explore.image_dialog import ImageDialog
    from flows.explore.images import PAGE, Images
    from flows.explore.page import prepare
    from flows.explore.state import ExploreState

    prepare()
    lake = Lake(uri)
    held = ExploreState(lake)
    dialog = ImageDialog(held)
    found: dict[str, float] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = action()
        found[f"{name}, s"] = time.perf_counter() - started
        return value

    images = timed("images opened", lambda: Images(held, dialog))
    images.dataset.value = DATASET
    assert images.pages.count == -(-1_000_000 // PAGE)
    timed("first page", images.update)
    timed("page 1,000", lambda: images.pages.param.update(value=999))
    timed("page 20,000", lambda: images.pages.param.update(value=19_999))
    assert len(images.pictures.items) == PAGE
    timed("page 1,000 of a split", lambda: _narrowed(images))
    anomalies = timed("a night's anomalies, page opened", lambda: Anomalies(held, dialog))
    timed("a night's highest scores", lambda: anomalies.which.param.update(value=RANKED))
    assert anomalies.pictures.items
    found["memory before neighbours are asked, MiB"] = watched.high_water(os.getpid())
    one = anomalies.pictures.items[0]["id"]
    model = next(iter(held.models().values()))
    timed("an image with its neighbours, vectors read", lambda: dialog.open(one, model))
    timed("another one, vectors in memory", lambda: dialog.show(anomalies.pictures.items[1]["id"]))
    assert len(dialog.near.items) == 12
    asked = "SELECT dataset, split, count(*) FROM images GROUP BY ALL"
    timed("SQL over all images", lambda: held.guarded.ask(asked, 200, 60.0))
    found["memory at its highest, MiB"] = watched.high_water(os.getpid())
    sys.stdout.write(json.dumps(found) + "\n")


def _narrowed(images: Any) -> None:
    images.split.value = "train"
    images.pages.value = 999
    assert "of 79" in images.notice.text or "of 80" in images.notice.text


SECTIONS: dict[str, Round] = {"session": session_round}


if __name__ == "__main__":
    main("explore", __doc__, SECTIONS)

"""What Ray tells Prometheus, and a real Prometheus that is told by our own configuration."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import ROOT, free_port
from tests.limits import SOON_S
from tests.ray_head import RayHead, ended

UNPACKED = ROOT / ".venv" / "prometheus" / "usr" / "bin"
PROMETHEUS = shutil.which("prometheus") or shutil.which("prometheus", path=str(UNPACKED))
DASHBOARD = ROOT / "infra" / "grafana" / "dashboards" / "latentlake.json"


def panels() -> list[dict[str, Any]]:
    """Of the Grafana dashboard."""
    return json.loads(DASHBOARD.read_text())["panels"]


def dashboard_metrics() -> set[str]:
    """That the panels ask for."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert all("ray_" in query for query in asked)
    return {name for query in asked for name in re.findall(r"\bray_\w+", query)}


@contextlib.contextmanager
def exported(head: RayHead) -> Iterator[set[str]]:
    """Names of all metrics that Prometheus could read meanwhile."""
    found: set[str] = set()
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.3):
            # Not there at first, and slow while workers start.
            with contextlib.suppress(OSError):
                asked = urllib.request.urlopen(
                    f"http://{head.metrics_host}/metrics", timeout=SOON_S
                )
                lines = asked.read().decode().splitlines()
                found.update(re.split(r"[{ ]", line, maxsplit=1)[0] for line in lines)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


class Prometheus:
    """One that runs."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log
        self.started = time.time()

    def most(self, query: str) -> list[float]:
        """The highest value since it started of each series of a query, as Grafana asks it."""
        # Grafana's variables: every dataset and model.
        asked = {"query": query.replace("$target", ".*"), "step": 1}
        asked |= {"start": self.started, "end": time.time()}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        series = json.load(urllib.request.urlopen(url, timeout=SOON_S))["data"]["result"]
        values = [[float(v) for _, v in one["values"] if v != "NaN"] for one in series]
        return [max(one) for one in values if one]


@contextlib.contextmanager
def prometheus(head: RayHead) -> Iterator[Prometheus]:
    """Ours, but for where the head and its token are, and how often it asks: tests are short."""
    assert PROMETHEUS is not None
    folder = Path(tempfile.mkdtemp(prefix="ll-p-", dir="/tmp"))
    config = yaml.safe_load((ROOT / "infra" / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    (found,) = config["scrape_configs"][0]["http_sd_configs"]
    (folder / "token").write_text(head.token)
    found["url"] = head.address + urllib.parse.urlsplit(found["url"]).path
    found["refresh_interval"] = "1s"
    found["authorization"]["credentials_file"] = str(folder / "token")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}", folder / "log")
    finally:
        ended(process)
        shutil.rmtree(folder, ignore_errors=True)

"""Prometheus and Grafana: what they are told, against what Ray and compose.yaml have."""

from __future__ import annotations

import inspect
import re

from tests.unit.infra.files import INFRA, document

SERVICES = document("compose.yaml")["services"]
GRAFANA = INFRA / "grafana"
DATASOURCE = "grafana/provisioning/datasources/prometheus.yaml"
PROVIDER = "grafana/provisioning/dashboards/latentlake.yaml"


def test_prometheus_asks_rays_head_for_its_targets() -> None:
    config = document("prometheus.yml")
    assert set(config) <= {"global", "scrape_configs"}
    for key in ("scrape_interval", "evaluation_interval"):
        assert re.fullmatch(r"\d+[smh]", config["global"].get(key, "15s"))
    (scrape,) = config["scrape_configs"]
    assert set(scrape) <= {"job_name", "http_sd_configs"}
    (found,) = scrape["http_sd_configs"]
    assert set(found) == {"url", "refresh_interval", "authorization"}
    scheme, _, rest = found["url"].partition("://")
    host, port = rest.split("/")[0].split(":")
    assert scheme == "http"
    assert f"--dashboard-port={port}" in SERVICES[host]["command"]
    from ray.dashboard.modules.reporter import reporter_head

    path = "/" + rest.split("/", 1)[1]
    assert f'routes.get("{path}")' in inspect.getsource(reporter_head)


def test_the_token_is_a_file_that_compose_mounts() -> None:
    (scrape,) = document("prometheus.yml")["scrape_configs"]
    (found,) = scrape["http_sd_configs"]
    (secret,) = SERVICES["prometheus"]["secrets"]
    # The type is said: some versions send none by themselves for this kind of discovery.
    told = {"type": "Bearer", "credentials_file": f"/run/secrets/{secret}"}
    assert found["authorization"] == told


def test_every_ray_node_exports_metrics_on_one_port() -> None:
    told = [
        word
        for name in ("ray-head", "ray-worker")
        for word in SERVICES[name]["command"]
        if word.startswith("--metrics-export-port=")
    ]
    assert len(told) == 2
    assert len(set(told)) == 1


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    (source,) = document(DATASOURCE)["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    host, port = source["url"].removeprefix("http://").split(":")
    assert any(p.endswith(f":{port}") for p in SERVICES[host]["ports"])
    (provider,) = document(PROVIDER)["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    targets = {target: source for source, target in mounts.items()}
    assert targets[provider["options"]["path"]] == "./grafana/dashboards"
    assert targets["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert {p.name for p in (GRAFANA / "provisioning").iterdir()} == {"datasources", "dashboards"}


def test_dashboards_ask_that_data_source() -> None:
    import json

    for path in (GRAFANA / "dashboards").glob("*.json"):
        dashboard = json.loads(path.read_text())
        assert dashboard["title"]
        text = path.read_text()
        uids = set(re.findall(r'"datasource":\s*\{[^}]*"uid":\s*"([^"]+)"', text))
        assert uids <= {"prometheus", "-- Grafana --"} or uids <= {"${datasource}", "prometheus"}

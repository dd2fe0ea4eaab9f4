"""The dashboard and the files that bring it to Grafana. `test_model_serving` asks a real Prometheus its queries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from deploy.grafana.dashboard import ROWS, dashboard, queries
from deploy.grafana.provision import write
from rollout_service.metrics.table import PREFIX, TABLE


def series() -> set[str]:
    """Every name under which Prometheus has a metric of the table."""
    found = set()
    for metric in TABLE.values():
        endings = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found |= {f"ray_{PREFIX}{metric.name}{ending}" for ending in endings}
    return found


def test_every_query_asks_for_metrics_of_the_table_and_for_the_chosen_services():
    known = series()
    for title, query in queries():
        named = re.findall(r"ray_\w+", query)
        assert named, title
        assert set(named) <= known, title
        assert query.count('{service_name=~"$service_name",SessionName=~"$SessionName"') == len(named), title
        for name in named:  # a counter is only good for its growth, and a gauge has none
            is_rate = f"rate({name}{{" in query
            if name.endswith("_total"):
                assert is_rate, title
            elif TABLE.get(name.removeprefix(f"ray_{PREFIX}")) is not None:
                assert not is_rate, title
            assert not name.endswith("_sum"), f"{title}: Ray exports only a rough sum of a histogram"


def test_panels_lie_beside_each_other_in_rows_without_gaps_or_overlaps():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(ROWS)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert all(x < 24 for x, _ in taken)


def test_prometheus_and_grafana_get_what_they_need_to_find_a_cluster_and_the_dashboards(tmp_path):
    paths = {path.name: path for path in write(tmp_path / "out", Path("/tmp/ray"), "http://prometheus:9090")}
    scraped = yaml.safe_load(paths["prometheus.yml"].read_text())["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert scraped == ["/tmp/ray/prom_metrics_service_discovery.json"]
    assert f"provisioning = {tmp_path}/out/grafana/provisioning" in paths["grafana.ini"].read_text()
    provisioning = tmp_path / "out/grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/default.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((provisioning / "dashboards/default.yml").read_text())["providers"][0]
    titles = [json.loads(path.read_text())["title"] for path in Path(provider["options"]["path"]).glob("*.json")]
    assert len(titles) == 4
    assert "Rollout service" in titles

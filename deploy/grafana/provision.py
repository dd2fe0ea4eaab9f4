"""Writes a folder with which Prometheus and Grafana show a Ray cluster: Ray's own configuration and dashboards, and the
service's dashboard. `make grafana` calls it.

Invariant: what Ray has a template for is written with it. Ray writes the same files for each session, under its folder
there, but without the service's dashboard, and over what was added.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ray.dashboard.modules.metrics.grafana_dashboard_factory as of_ray
from ray.dashboard.modules.metrics import templates

from deploy.grafana.dashboard import dashboard

_DISCOVERY = "prom_metrics_service_discovery.json"
"""Where the head of a cluster writes the addresses of its nodes' metrics, in Ray's temporary folder."""

_DASHBOARDS = {
    "default": of_ray.generate_default_grafana_dashboard,
    "serve": of_ray.generate_serve_grafana_dashboard,
    "serve_deployment": of_ray.generate_serve_deployment_grafana_dashboard,
}


def write(folder: Path, ray_folder: Path, prometheus: str) -> list[Path]:
    """Write all files. Returns their paths: Prometheus' configuration, Grafana's, and what that names.

    Args:
        folder: where to write. Files of other names stay.
        ray_folder: Ray's temporary folder on the head.
        prometheus: address of Prometheus, for Grafana.
    """
    folder = folder.absolute()
    grafana, dashboards = folder / "grafana", folder / "grafana/dashboards"
    provisioning = grafana / "provisioning"
    discovery = ray_folder.absolute() / _DISCOVERY
    texts = {
        folder / "prometheus/prometheus.yml": templates.PROMETHEUS_YML_TEMPLATE.format(
            prom_metrics_service_discovery_file_path=discovery
        ),
        grafana / "grafana.ini": templates.GRAFANA_INI_TEMPLATE.format(grafana_provisioning_folder=provisioning),
        provisioning / "dashboards/default.yml": templates.DASHBOARD_PROVISIONING_TEMPLATE.format(
            dashboard_output_folder=dashboards
        ),
        provisioning / "datasources/default.yml": templates.GRAFANA_DATASOURCE_TEMPLATE(
            prometheus_name="Prometheus", prometheus_host=prometheus, jsonData={}, secureJsonData={}
        ),
        dashboards / "rollout_service_grafana_dashboard.json": json.dumps(dashboard(), indent=2),
    }
    for name, generate in _DASHBOARDS.items():
        texts[dashboards / f"{name}_grafana_dashboard.json"] = generate()[0]
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(texts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split(": ")[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("monitoring"), help="where to write")
    parser.add_argument("--ray-folder", type=Path, default=Path("/tmp/ray"), help="Ray's --temp-dir on the head")
    parser.add_argument("--prometheus", default="http://localhost:9090", help="its address, for Grafana")
    chosen = parser.parse_args()
    prometheus, grafana, *_ = write(chosen.folder, chosen.ray_folder, chosen.prometheus)
    print(f"Prometheus: prometheus --config.file={prometheus}")
    print(f"Grafana:    grafana server --config {grafana}")


if __name__ == "__main__":
    main()

"""A real Prometheus that scrapes the cluster of this process."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.support.ports import free_port

BINARY = shutil.which("prometheus")

needed = pytest.mark.skipif(BINARY is None, reason="needs Prometheus: apt-get install prometheus")

Query = Callable[[str], list[float]]
"""Gives the values of a query's series now, without those that are not a number."""

_CONFIGURATION = """
global: {{scrape_interval: 2s}}
scrape_configs:
- job_name: ray
  static_configs:
  - targets: [{targets}]
"""


@contextlib.contextmanager
def scraping(folder: Path) -> Iterator[Query]:
    """Prometheus runs, with its files in the folder."""
    assert BINARY is not None
    targets = ", ".join(f"'{node['NodeManagerAddress']}:{node['MetricsExportPort']}'" for node in ray.nodes())
    config = folder / "prometheus.yml"
    config.write_text(_CONFIGURATION.format(targets=targets))
    address = f"127.0.0.1:{free_port()}"
    options = {"config.file": config, "storage.tsdb.path": folder / "data", "web.listen-address": address}
    command = [BINARY, *(f"--{name}={value}" for name, value in options.items()), "--log.level=error"]
    program = subprocess.Popen(command)

    def query(text: str) -> list[float]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                found = json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{text}: {error.read().decode()}") from None
        except urllib.error.URLError:  # it is not up yet
            assert program.poll() is None, "Prometheus ended"
            return []
        values = [float(series["value"][1]) for series in found]
        return [value for value in values if not math.isnan(value)]

    try:
        yield query
    finally:
        program.terminate()
        program.wait(60)

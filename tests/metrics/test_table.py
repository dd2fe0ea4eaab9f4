"""The table of metrics: what it promises, and that the documents say the same."""

from __future__ import annotations

import re
from pathlib import Path

from rollout_service.metrics.table import PARTS, PREFIX, REASONS, TABLE
from rollout_service.record.trajectory import Timing

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
LABELS = {"domain", "outcome", "part", "kind", "reason", "mode", "result", "source", "flaw"}
"""Each has few values, and those are known before."""


def test_the_page_lists_the_same_metrics_as_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert listed == [(each.name, each.kind, each.labels, each.text) for each in TABLE.values()]


def test_names_labels_and_buckets_are_what_prometheus_and_ray_take():
    for metric in TABLE.values():
        assert re.fullmatch(r"[a-z][a-z_]*", PREFIX + metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert set(metric.labels) <= LABELS, "a label has few values"
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert all(bound > 0 for bound in metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.text.isascii(), "Ray refuses other descriptions"


def test_the_parts_are_those_of_a_trajectory_s_timing_and_the_reasons_are_explained():
    assert {f"{part}_seconds" for part in PARTS} == set(Timing.__slots__)
    for value in (*PARTS, *REASONS):
        assert f"`{value}`" in PAGE.read_text()

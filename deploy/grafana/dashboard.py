"""The service's Grafana dashboard, laid out as Ray's own: rows of panels, two beside each other.

Invariant: every query asks for metrics of `rollout_service.metrics.table`, of the services that are chosen above.
`python -m deploy.grafana.dashboard` writes its JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rollout_service.metrics.table import PREFIX, SERVICE_LABEL

UID = "rolloutService"

_COLUMNS, _HEIGHT = 24, 8

_WINDOW = "[$__rate_interval]"

_PREFIX = f"ray_{PREFIX}"
"""How the names begin under which Ray exports the metrics."""

_FILTER = f'{{{SERVICE_LABEL}=~"${SERVICE_LABEL}",SessionName=~"$SessionName"}}'


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot of some queries over time."""

    title: str
    unit: str
    """As Grafana names it."""
    queries: tuple[tuple[str, str], ...]
    """Query and legend of each. `NAME` in braces stands for that metric with the filter, `NAME/s` for its rate."""
    text: str = ""


ROWS: dict[str, tuple[Panel, ...]] = {
    "Episodes": (
        Panel("Episodes per minute", "short", (("60 * sum by (outcome) ({episodes_total/s})", "{{outcome}}"),)),
        Panel(
            "Mean reward",
            "short",
            (
                (
                    "(sum by (domain) ({rewards_total/s}) or 0 * sum by (domain) ({reward_count/s}))"
                    " / sum by (domain) ({reward_count/s})",  # Ray exports no counter before it has grown
                    "{{domain}}",
                ),
            ),
            "Of the episodes that were scored.",
        ),
        Panel(
            "Slots and queue",
            "short",
            (
                ("sum({slots})", "slots"),
                ("sum({running})", "busy"),
                ("sum({admitted})", "episodes that the replicas' memory admits"),
                ("sum({waiting})", "episodes that wait"),
                ("sum({resting})", "episodes that rest"),
            ),
        ),
        Panel(
            "What holds collections back",
            "short",
            (("sum by (reason) ({held_back})", "{{reason}}"),),
            "Collections whose waiting episodes do not start.",
        ),
        Panel(
            "Collections and groups",
            "short",
            (
                ("sum({open_collections})", "open collections"),
                ("sum({waiting_groups})", "groups that wait for their reader"),
            ),
        ),
        Panel(
            "Faults per minute",
            "short",
            (
                ("60 * sum by (kind) ({faults_total/s}) or vector(0)", "{{kind}}"),
                ("60 * sum({retries_total/s}) or vector(0)", "made again"),
                ("60 * sum({lost_actors_total/s}) or vector(0)", "actors lost"),
            ),
        ),
    ),
    "Turns": (
        Panel(
            "Time of a turn, by part",
            "s",
            (("sum by (part) ({part_seconds_total/s}) / on () group_left () sum({turns_total/s})", "{{part}}"),),
            "Mean seconds. The queue is the time from the request to the start of an attempt.",
        ),
        Panel(
            "Latency of the policy's turns",
            "s",
            tuple(
                (f'histogram_quantile({share}, sum by (le) ({{turn_seconds_bucket/s|part="policy"}}))', legend)
                for share, legend in ((0.5, "median"), (0.95, "95%"), (0.99, "99%"))
            ),
        ),
        Panel(
            "Turns of an episode",
            "short",
            (
                (
                    "sum by (domain) ({turns_total/s}) / sum by (domain) ({episode_turns_count/s})",
                    "{{domain}}",
                ),
            ),
        ),
        Panel(
            "Seconds of an episode",
            "s",
            (("histogram_quantile(0.5, sum by (le, part) ({episode_seconds_bucket/s}))", "{{part}}"),),
            "Medians by part.",
        ),
    ),
    "Tokens and cost": (
        Panel(
            "Tokens per second",
            "short",
            (
                ("sum({sampled_tokens_total/s})", "sampled"),
                ("sum({prompt_tokens_total/s})", "prompt"),
                ("sum({cached_tokens_total/s}) or vector(0)", "prompt, from the cache"),
            ),
        ),
        Panel(
            "Cost",
            "currencyUSD",
            (("3600 * sum({cost_usd_total/s}) or vector(0)", "an hour"),),
            "User simulators, their reviewers and judges, where the price is known.",
        ),
    ),
    "User simulator": (
        Panel(
            "Requests per second",
            "reqps",
            (
                ("sum({user_requests_total/s}) or vector(0)", "requests"),
                ("sum({user_failures_total/s}) or vector(0)", "failures"),
            ),
        ),
        Panel(
            "Endpoint",
            "short",
            (
                ("sum({user_limit}) or vector(0)", "limit"),
                ("sum({user_in_flight}) or vector(0)", "in flight"),
                ("sum({user_waiting}) or vector(0)", "wait for a place"),
            ),
        ),
        Panel(
            "Flaws",
            "percentunit",
            (
                (
                    "sum by (source, flaw) ({user_flaws_total/s})"
                    " / on (source) group_left () sum by (source) ({users_examined_total/s}) or vector(0)",
                    "{{source}} {{flaw}}",
                ),
            ),
            "Share of the episodes in which heuristics, or τ²'s reviewer, found the user simulator at fault.",
        ),
    ),
    "Weights": (
        Panel(
            "Weight version",
            "short",
            (
                ("max by (service_name) ({weight_version})", "the trainer's, {{service_name}}"),
                ("min by (service_name) ({engine_weight_version})", "the oldest replica's, {{service_name}}"),
            ),
        ),
        Panel(
            "Seconds of a weight update",
            "s",
            (("histogram_quantile(0.5, sum by (le, mode) ({weight_update_seconds_bucket}))", "{{mode}}"),),
            "Medians since the fleet started.",
        ),
        Panel(
            "Staleness",
            "short",
            (
                (
                    "(sum by (domain) ({versions_behind_total/s}) or 0 * sum by (domain) ({staleness_count/s}))"
                    " / sum by (domain) ({staleness_count/s})",
                    "mean, {{domain}}",
                ),
                ("60 * sum({late_total/s}) or vector(0)", "too old, per minute"),
            ),
            "Weight versions that an episode is behind when it is done.",
        ),
    ),
    "Engines": (
        Panel(
            "Turns in the replicas",
            "short",
            (
                ("sum by (WorkerId) ({engine_running})", "{{WorkerId}}"),
                ("sum({engine_waiting})", "in the engines' queues"),
            ),
        ),
        Panel(
            "Keys and values",
            "percentunit",
            (
                ("max by (WorkerId) ({engine_kv_use})", "used, {{WorkerId}}"),
                ("avg({engine_cache_hits})", "prefix cache hits, mean"),
            ),
        ),
    ),
}
"""The panels by row."""


def queries() -> Iterator[tuple[str, str]]:
    """Title and query of each panel's queries, as Grafana sends them with its variables."""
    for panels in ROWS.values():
        for panel in panels:
            for query, _ in panel.queries:
                yield panel.title, _written(query)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row, panels in ROWS.items():
        placed.append(_placed({"type": "row", "title": row, "collapsed": False, "panels": []}, 0, y, _COLUMNS, 1))
        y += 1
        for index, panel in enumerate(panels):
            x = index % 2 * (_COLUMNS // 2)
            placed.append(_placed(_plot(panel), x, y + index // 2 * _HEIGHT, _COLUMNS // 2, _HEIGHT))
        y += -(-len(panels) // 2) * _HEIGHT
    return {
        "uid": UID,
        "title": "Rollout service",
        "tags": ["ray"],
        "schemaVersion": 36,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [panel | {"id": number} for number, panel in enumerate(placed, 1)],
    }


def _plot(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"expr": _written(query), "legendFormat": legend, "refId": chr(ord("A") + number)}
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _placed(panel: dict[str, Any], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return panel | {"gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2}
    return [source, _variable("SessionName", "Ray session"), _variable(SERVICE_LABEL, "service")]


def _variable(label: str, title: str) -> dict[str, Any]:
    return {
        "name": label,
        "label": title,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": f"label_values({_PREFIX}slots, {label})", "refId": label},
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
    }


def _written(query: str) -> str:
    """The query with each metric's full name and filter."""

    def metric(found: re.Match[str]) -> str:
        name, rate, more = found.groups()
        chosen = _FILTER if more is None else f"{_FILTER[:-1]},{more}}}"
        full = f"{_PREFIX}{name}{chosen}"
        return f"rate({full}{_WINDOW})" if rate else full

    return re.sub(r"\{([a-z_]+)(/s)?(?:\|([^}]+))?\}", metric, query)


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))

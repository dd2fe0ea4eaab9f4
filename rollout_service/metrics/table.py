"""The table of all metrics: names, kinds, labels and buckets.

Invariant: names and labels are stable, because dashboards and alerts rely on them. Every label has few values: no id of
a task, an episode, a session or a collection is one. docs/metrics.md lists the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "rollout_service_"
"""How every name begins where it is exported. Ray writes `ray_` before it."""

SERVICE_LABEL = "service_name"
"""The label with `service.name`, which Ray's export adds to each metric: a cluster may have several services. It is not
called `service`, because a Prometheus on Kubernetes has a label of that name of its own."""

PARTS = ("queue", "policy", "user", "environment", "evaluation")
"""Parts of an episode's time, as in `Timing`."""

REASONS = ("actors", "paused", "fault", "buffer", "staleness", "memory", "slots")
"""Why waiting episodes do not start, as in docs/metrics.md."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row."""

    name: str
    """Without the prefix. The names of counters, and of nothing else, end with `_total`."""
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str
    """What it is, with its unit."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, all above 0."""


_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_LONG_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_TURNS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0)
_REWARDS = (0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
_VERSIONS = (0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 64.0)

_DOMAIN = ("domain",)

_EPISODES = (
    Metric("episodes_total", "counter", ("domain", "outcome"), "episodes that are done, by how they ended"),
    Metric("reward", "histogram", _DOMAIN, "rewards of the episodes that are done and scored", _REWARDS),
    Metric("rewards_total", "counter", _DOMAIN, "sum of those rewards"),
    Metric("turns_total", "counter", _DOMAIN, "turns of attempts that ended"),
    Metric("part_seconds_total", "counter", ("part",), "seconds of attempts by part"),
    Metric("episode_turns", "histogram", _DOMAIN, "turns of an attempt", _TURNS),
    Metric("episode_seconds", "histogram", ("part",), "seconds of an attempt by part", _LONG_SECONDS),
    Metric(
        "turn_seconds",
        "histogram",
        ("part",),
        "seconds of a turn by part; policy: each turn; the other parts: an attempt's seconds divided by its turns",
        _SECONDS,
    ),
    Metric("sampled_tokens_total", "counter", _DOMAIN, "tokens that the policy sampled"),
    Metric("prompt_tokens_total", "counter", _DOMAIN, "tokens sent to the policy, summed over turns"),
    Metric("cached_tokens_total", "counter", _DOMAIN, "those of them that came from the prefix cache"),
    Metric("user_requests_total", "counter", _DOMAIN, "requests to the user simulator, retries included"),
    Metric("user_failures_total", "counter", _DOMAIN, "requests to the user simulator that failed"),
    Metric("user_tokens_total", "counter", _DOMAIN, "tokens of the user simulator, sent and written"),
    Metric(
        "users_examined_total", "counter", ("source",), "episodes whose user was examined by heuristics or a review"
    ),
    Metric("user_flaws_total", "counter", ("source", "flaw"), "those of them with this flaw, or with any"),
    Metric("cost_usd_total", "counter", _DOMAIN, "US dollars of users, their reviewers and judges, as far as known"),
    Metric("unknown_costs_total", "counter", _DOMAIN, "attempts whose cost is not known"),
    Metric("faults_total", "counter", ("kind",), "attempts that a fault ended, by whose fault it is"),
    Metric("retries_total", "counter", (), "attempts that were, or are to be, made again"),
    Metric("late_total", "counter", (), "trajectories that were too old: ended in flight, dropped or delivered"),
    Metric("withheld_total", "counter", (), "groups with too few scored trajectories (service.min_group_size)"),
    Metric("staleness", "histogram", _DOMAIN, "weight versions that an episode is behind when it is done", _VERSIONS),
    Metric("versions_behind_total", "counter", _DOMAIN, "sum of those versions"),
)

_STATE = (
    Metric("actors", "gauge", (), "environment actors that are ready"),
    Metric("lost_actors_total", "counter", (), "environment actors that were lost"),
    Metric("slots", "gauge", (), "slots of the environment actors"),
    Metric("running", "gauge", (), "episodes in flight, which is the number of busy slots"),
    Metric(
        "admitted", "gauge", (), "episodes that may be in flight: the slots, or fewer where admission holds some back"
    ),
    Metric("waiting", "gauge", (), "episodes that still have to start"),
    Metric("resting", "gauge", (), "episodes that start again after a pause"),
    Metric("open_collections", "gauge", (), "collections that are open"),
    Metric("waiting_groups", "gauge", (), "finished groups that wait for their reader"),
    Metric("held_back", "gauge", ("reason",), "collections whose waiting episodes do not start, by reason"),
    Metric("weight_version", "gauge", (), "weight version that the trainer gave last"),
    Metric("paused", "gauge", (), "1 while the trainer has the policy paused, else 0"),
    Metric("user_limit", "gauge", (), "requests that may be in flight to the user simulator's endpoint"),
    Metric("user_in_flight", "gauge", (), "requests in flight to it"),
    Metric("user_waiting", "gauge", (), "requests that wait for a place"),
)

_UPDATES = (
    Metric("weight_updates_total", "counter", ("mode", "result"), "weight updates; result: loaded or failed"),
    Metric("weight_update_seconds", "histogram", ("mode",), "seconds of an update over all replicas", _SECONDS),
)

ENGINE = (
    Metric("engine_running", "gauge", (), "turns that a replica samples"),
    Metric("engine_waiting", "gauge", (), "turns that wait in the engine's queue"),
    Metric("engine_kv_use", "gauge", (), "share of the room for keys and values that running turns use, 0 to 1"),
    Metric("engine_cache_hits", "gauge", (), "share of the latest prompt tokens found in its prefix cache, 0 to 1"),
    Metric("engine_weight_version", "gauge", (), "weight version that the replica samples with"),
)
"""What each policy replica exports of its own. Ray's label WorkerId tells the replicas apart."""

TABLE: dict[str, Metric] = {metric.name: metric for metric in (*_EPISODES, *_STATE, *_UPDATES, *ENGINE)}
"""Every metric by its name."""

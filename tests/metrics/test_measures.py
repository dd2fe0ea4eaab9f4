"""What is counted from an attempt and an episode, from replicas and from updates."""

from __future__ import annotations

from dataclasses import replace

from pydantic import TypeAdapter

import rollout_service.metrics.text as text
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.metrics.engines import count_update, engine_readings, set_engine
from rollout_service.metrics.measures import Measures, count_attempt, count_episode
from rollout_service.metrics.meter import Meter
from rollout_service.policy.replicas import Occupancy, ReplicaState
from rollout_service.record.trajectory import Outcome, Timing, UserUsage
from tests.support.trajectories import make_trajectory

SUMMARY = EpisodeSummary(
    "t",
    Outcome.COMPLETED,
    "user_stop",
    0.5,
    None,
    versions=(3, 4),
    prompt_tokens=100,
    cached_tokens=60,
    policy_tokens=12,
    user_tokens=30,
    cost_usd=0.25,
    measures=Measures((0.5, 1.5), (8.0, 2.0, 4.0, 1.0, 0.5), 3, 1),
)


def flat(meter: Meter) -> dict[str, float]:
    return text.flat(meter.readings())


def test_an_attempt_counts_what_it_consumed_and_took():
    meter = Meter()
    count_attempt(meter, "retail", SUMMARY)
    found = flat(meter)
    consumed = {
        "sampled_tokens_total/retail": 12.0,
        "prompt_tokens_total/retail": 100.0,
        "cached_tokens_total/retail": 60.0,
        "user_tokens_total/retail": 30.0,
        "user_requests_total/retail": 3.0,
        "user_failures_total/retail": 1.0,
        "cost_usd_total/retail": 0.25,
        "unknown_costs_total/retail": 0.0,
    }
    assert consumed.items() <= found.items()
    assert found["episode_turns/retail/mean"] == found["turns_total/retail"] == 2
    assert found["part_seconds_total/evaluation"] == 0.5
    assert found["episode_seconds/queue/sum"] == 8.0
    assert (found["turn_seconds/policy/count"], found["turn_seconds/policy/sum"]) == (2, 2.0)
    assert (found["turn_seconds/user/count"], found["turn_seconds/user/sum"]) == (1, 2.0)
    assert "episodes_total/retail/completed" not in found, "an attempt is not an episode that is done"


def test_an_unknown_cost_is_not_counted_as_nothing():
    meter = Meter()
    count_attempt(meter, "retail", replace(SUMMARY, cost_usd=None, measures=None))
    found = flat(meter)
    assert (found["cost_usd_total/retail"], found["unknown_costs_total/retail"]) == (0.0, 1.0)


def test_an_episode_without_reward_is_no_reward_of_0():
    meter = Meter()
    count_episode(meter, "retail", SUMMARY, version=5)
    count_episode(meter, "retail", replace(SUMMARY, outcome=Outcome.ABORTED, reward=None, versions=None), version=5)
    found = flat(meter)
    assert (found["reward/retail/count"], found["reward/retail/mean"]) == (1, 0.5)
    assert found["rewards_total/retail"] == 0.5
    assert (found["staleness/retail/count"], found["staleness/retail/mean"]) == (1, 2)
    assert found["versions_behind_total/retail"] == 2
    assert found["episodes_total/retail/completed"] == found["episodes_total/retail/aborted"] == 1


def test_flaws_of_the_user_count_over_the_episodes_that_were_examined():
    meter = Meter()
    for flaws, review in ((("empty_answer", "tool_misuse"), ("hallucination", "minor")), ((), None), (None, ())):
        count_episode(meter, "retail", replace(SUMMARY, user_flaws=flaws, user_review=review), version=5)
    found = flat(meter)
    assert (found["users_examined_total/heuristics"], found["users_examined_total/review"]) == (2, 2)
    assert found["user_flaws_total/heuristics/any"] == found["user_flaws_total/heuristics/tool_misuse"] == 1
    assert found["user_flaws_total/review/any"] == found["user_flaws_total/review/minor"] == 1


def test_a_summary_has_its_trajectory_s_measures_and_no_journal_stores_them():
    trajectory = make_trajectory(timing=Timing(1.0, 2.0, 3.0, 4.0, 5.0), user_usage=UserUsage(requests=7))
    summary = EpisodeSummary.of(trajectory)
    seconds = tuple(turn.policy_seconds for turn in trajectory.turns)
    assert summary.context_tokens == len(trajectory.segments[0].token_ids) > 0
    assert summary.measures == Measures(seconds, (1.0, 2.0, 3.0, 4.0, 5.0), 7, 0)
    form = TypeAdapter(EpisodeSummary)
    assert form.validate_json(form.dump_json(summary)) == replace(summary, measures=None)


def replica(running: int, version: int, occupancy: Occupancy | None) -> ReplicaState:
    return ReplicaState(f"r{running}", version, False, running, 0, occupancy=occupancy)


def test_replicas_together_are_summed_averaged_and_as_old_as_the_oldest():
    states = [replica(4, 7, Occupancy(2, 0.5, 0.25)), replica(6, 8, Occupancy(0, 0.25, 0.75))]
    assert text.flat(engine_readings(states)) == {
        "engine_running": 10.0,
        "engine_weight_version": 7.0,
        "engine_waiting": 2.0,
        "engine_kv_use": 0.375,
        "engine_cache_hits": 0.5,
    }


def test_what_an_engine_does_not_have_is_left_out():
    meter = Meter()
    set_engine(meter, replica(3, 1, None))
    assert flat(meter) == {"engine_running": 3.0, "engine_weight_version": 1.0}
    assert engine_readings([]) == []


def test_an_update_that_failed_has_no_duration():
    meter = Meter()
    count_update(meter, "drain", 2.0)
    count_update(meter, "drain", None)
    found = flat(meter)
    assert found["weight_updates_total/drain/loaded"] == found["weight_updates_total/drain/failed"] == 1
    assert (found["weight_update_seconds/drain/count"], found["weight_update_seconds/drain/sum"]) == (1, 2.0)

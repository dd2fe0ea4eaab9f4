"""A log of Inspect (`inspect-ai`): an `.eval` file that `inspect view` and `read_eval_log` read.

Invariant: a sample is one episode: its id is τ²-bench's task, its epoch is the trial, its score is τ²'s reward. The
messages are those that the policy saw, without its prompt; where the user simulator called tools, all of τ²'s messages
stand in the sample's store.

It is written in the file's own format, a ZIP archive of JSON of log version 2, and not through Inspect's library, whose
public writer wants the whole log in memory and which would be a large dependency. Inspect's readers take the logs of
older releases, so a file of this version stays readable.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rollout_service.export import conversation
from rollout_service.export.selection import Selected
from rollout_service.export.strict_json import to_json
from rollout_service.export.tau2_results import check_one_domain, times
from rollout_service.record.evaluation import Evaluation
from rollout_service.record.trajectory import Outcome, Trajectory
from rollout_service.termination import TerminationReason
from rollout_service.version import __version__

_VERSION = 2
"""Of Inspect's log format."""

_SCORER = "tau2_reward"

_LIMITS: dict[str, str] = {
    TerminationReason.MAX_STEPS: "max_steps",
    TerminationReason.TOO_MANY_ERRORS: "max_errors",
    TerminationReason.MAX_TURNS: "max_turns",
}
"""Which of an episode's limits a termination reason means."""

_SUMMARIZED = ("id", "epoch", "target", "model_usage", "role_usage", "total_time", "uuid", "turn_count")
"""Fields of a sample that its summary repeats."""


def write(selected: Selected, path: Path) -> None:
    """Write the log of one run in one domain.

    Raises:
        StorageError: the trajectories are of several domains.
    """
    trials: Counter[str] = Counter()
    first: Trajectory | None = None
    evaluation = Evaluation(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, tempfile.TemporaryFile() as summaries:
        domain = ""
        for trajectory, reason in selected.everything():
            domain = domain or trajectory.task.domain
            check_one_domain(domain, trajectory)
            trials[trajectory.task.task_id] += 1
            if reason:
                continue
            record = sample(trajectory, trials[trajectory.task.task_id])
            archive.writestr(f"samples/{record['id']}_epoch_{record['epoch']}.json", to_json(record))
            summaries.write((b",\n" if first else b"[\n") + to_json(_summary(record)))
            evaluation.add([trajectory])
            first = first or trajectory
        summaries.write(b"\n]\n")
        summaries.seek(0)
        with archive.open("summaries.json", "w") as member:
            shutil.copyfileobj(summaries, member)
        assert first is not None  # `everything` raises where nothing is taken
        evaluation.trials = max(trials.values())
        mean = evaluation.summary.domains[domain].mean_reward
        metrics = {"mean": mean} | {f"pass^{rate.k}": rate.value for rate in evaluation.pass_rates}
        archive.writestr("header.json", to_json(_header(first, selected, trials, metrics)))


def sample(trajectory: Trajectory, epoch: int) -> dict[str, Any]:
    """A scored trajectory as Inspect's `EvalSample`, as JSON values.

    Args:
        epoch: the number of its trial, from 1.
    """
    wrote = {turn.message_index for turn in trajectory.turns}
    model = trajectory.provenance.model
    called = {call["id"]: call["name"] for each in trajectory.messages for call in each.get("tool_calls") or []}
    seen = [
        _message(record, called, "generate" if place in wrote else "input", model)
        for place, record in enumerate(trajectory.messages)
        if conversation.is_seen(record)
    ]
    spoken = [message for message in seen if message.get("source") == "generate"]
    opening = seen[: seen.index(spoken[0])] if spoken else seen
    usage = {
        "input_tokens": trajectory.prompt_token_count,
        "output_tokens": trajectory.policy_token_count,
        "total_tokens": trajectory.prompt_token_count + trajectory.policy_token_count,
        "input_tokens_cache_read": trajectory.cached_token_count,
    }
    stopped = "max_tokens" if trajectory.turns[-1].finish_reason == "length" else "stop"
    record: dict[str, Any] = {
        "id": trajectory.task.task_id,
        "epoch": epoch,
        "input": opening or "",
        "target": "",
        "messages": seen,
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": stopped} for message in spoken[-1:]],
            "usage": usage,
        },
        "scores": {_SCORER: {"value": trajectory.reward, "metadata": trajectory.reward_info}},
        "metadata": _metadata(trajectory),
        "store": {"tau2_messages": trajectory.messages} if len(seen) < len(trajectory.messages) else {},
        "model_usage": {model: usage},
        "role_usage": {"user": _user_usage(trajectory)} if trajectory.user_usage.requests else {},
        "total_time": trajectory.timing.episode_seconds,
        "uuid": trajectory.trajectory_id,
        "turn_count": len(trajectory.turns),
    }
    if trajectory.started:
        record["started_at"], record["completed_at"] = times(trajectory)
    if trajectory.outcome is Outcome.TRUNCATED:
        number = trajectory.provenance.limits.get(_LIMITS.get(trajectory.termination_reason, ""))
        if number is not None:
            record["limit"] = {"type": "custom", "limit": number, "reason": trajectory.termination_reason}
    return record


def _message(record: dict[str, Any], called: dict[str, str], source: str, model: str) -> dict[str, Any]:
    """
    Args:
        called: names of the called tools by the calls' ids.
        source: `generate`: the policy wrote it.
    """
    role, content = record["role"], record.get("content") or ""
    if role == "tool":
        error = {"type": "unknown", "message": content} if record.get("error") else None
        name = called.get(record["id"])
        return {"role": role, "content": content, "tool_call_id": record["id"], "function": name, "error": error}
    message = {"role": role, "content": content}
    if role == "assistant":
        message |= {"source": source, "model": model if source == "generate" else None}
    if calls := record.get("tool_calls"):
        message["tool_calls"] = [
            {"id": call["id"], "function": call["name"], "arguments": call["arguments"], "type": "function"}
            for call in calls
        ]
    return message


def _metadata(trajectory: Trajectory) -> dict[str, Any]:
    names = ("collection_id", "group_id", "sample_index", "seed", "attempt", "termination_reason", "user_flaws")
    own = {name: getattr(trajectory, name) for name in names}
    return own | {"split": trajectory.task.split, "outcome": str(trajectory.outcome)}


def _user_usage(trajectory: Trajectory) -> dict[str, Any]:
    used = trajectory.user_usage
    return {
        "input_tokens": used.prompt_tokens,
        "output_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "total_cost": used.cost_usd,
    }


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """Inspect's `EvalSampleSummary`: what its list of samples shows."""
    said = record["input"][-1]["content"] if record["input"] else ""
    kept = {name: record[name] for name in (*_SUMMARIZED, "started_at", "completed_at") if name in record}
    return kept | {
        "input": said,
        "scores": {_SCORER: {"value": record["scores"][_SCORER]["value"]}},
        "metadata": {name: record["metadata"][name] for name in ("outcome", "termination_reason", "seed")},
        "limit": record["limit"]["reason"] if "limit" in record else None,
        "completed": True,
        "message_count": len(record["messages"]),
    }


def _header(first: Trajectory, selected: Selected, trials: Counter[str], metrics: dict[str, Any]) -> dict[str, Any]:
    made, domain = first.provenance, first.task.domain
    sampling = made.sampling
    chosen = {name: sampling[name] for name in ("temperature", "top_p", "top_k") if sampling.get(name) is not None}
    score = {
        "name": _SCORER,
        "scorer": _SCORER,
        "scored_samples": selected.taken,
        "metrics": {name: {"name": name, "value": value} for name, value in metrics.items()},
    }
    return {
        "version": _VERSION,
        "status": "success",
        "eval": {
            "eval_id": first.collection_id,
            "run_id": first.collection_id,
            "task_id": f"tau2_{domain}",
            "created": first.started or datetime.now(UTC).isoformat(),
            "task": f"tau2_{domain}",
            "task_args": {"domain": domain, "agent": made.agent, "user": made.user, "evaluation": made.evaluation},
            "dataset": {"name": f"tau2-bench {domain}", "samples": len(trials), "sample_ids": list(trials)},
            "model": made.model,
            "model_generate_config": chosen,
            "config": {"epochs": max(trials.values())},
            "packages": {"tau2-rollout-service": __version__, made.tau2_distribution: made.tau2_version},
            "metadata": {"left_out": dict(selected.left_out), "limits": made.limits, "sampling": sampling},
        },
        "results": {
            "total_samples": trials.total(),
            "completed_samples": selected.taken,
            "scores": [score],
        },
    }

"""Requests and answers of SGLang's `/generate` (SGLang 0.5.19 or newer, for weight versions).

Invariant: token ids in, token ids out. Every sampled token has its log-prob and its weight version, or the answer is
rejected. SGLang's log-probs are natural logarithms, after temperature and before top-p and top-k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation


def sampling_params(sampling: Sampling) -> dict[str, Any]:
    """`sampling` with SGLang's names."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "ignore_eos": sampling.ignore_eos,
        "no_stop_trim": True,  # without stop tokens the policy would not learn to end its turns
    }


def to_payload(input_ids: npt.NDArray[np.int32], sampling: Sampling, rid: str) -> dict[str, Any]:
    """The JSON body of a request."""
    return {
        "input_ids": input_ids.tolist(),
        "sampling_params": sampling_params(sampling),
        "return_logprob": True,
        "rid": rid,
    }


def from_answer(answer: Mapping[str, Any]) -> Generation:
    """Read an engine's answer.

    Returns:
        A turn, or a part of one if the request was aborted (`finish_reason` is `abort`).

    Raises:
        ValueError: it is not a complete answer of `/generate` with log-probs. The message says what is wrong.
    """
    try:
        return _read(answer)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise ValueError(f"the engine's answer {problem}: is it SGLang's /generate, with return_logprob?") from None


def _read(answer: Mapping[str, Any]) -> Generation:
    tokens, meta = answer["output_ids"], answer["meta_info"]
    reason = meta["finish_reason"]
    if isinstance(reason, str):
        reason = {"type": reason}
    if reason["type"] == "abort" and reason.get("status_code") is not None:
        raise ValueError(f"the engine refused the request: {reason.get('message')}")
    logprobs = meta["output_token_logprobs"]
    if [item[1] for item in logprobs] != list(tokens):
        raise ValueError(
            f"the engine's {len(logprobs)} log-probs do not match its {len(tokens)} tokens: it must return one for "
            "each sampled token"
        )
    return Generation(
        token_ids=np.asarray(tokens, dtype=np.int32),
        logprobs=np.asarray([float(item[0]) for item in logprobs], dtype=np.float32),
        weight_versions=_versions(meta, len(tokens)),
        finish_reason=reason["type"],
        prompt_tokens=int(meta.get("prompt_tokens", 0)),
        cached_tokens=int(meta.get("cached_tokens", 0)),
        prefix_version=None if meta.get("prefix_version") is None else _number(meta["prefix_version"]),
        queue_seconds=_seconds(meta.get("queue_time")),
    )


def _versions(meta: Mapping[str, Any], n: int) -> npt.NDArray[np.int32]:
    spans = meta.get("weight_versions") or [{"version": meta.get("weight_version"), "start": 0, "end": n}]
    versions = np.full(n, -1, dtype=np.int32)
    for span in spans:
        versions[span["start"] : span["end"]] = _number(span["version"])
    if n and versions.min() < 0:
        raise ValueError(f"the engine's weight versions {spans} do not cover its {n} tokens")
    return versions


def _number(version: Any) -> int:
    if version in (None, "default"):  # SGLang's values before the first version is set
        return 0
    if type(version) is int or (isinstance(version, str) and version.removeprefix("-").isdecimal()):
        return int(version)
    raise ValueError(f"the engine's weight version is {version!r}; it must be an integer")


def _seconds(value: Any) -> float | None:
    """A duration; None where there is none, or one that no clock can have measured."""
    return float(value) if type(value) in (int, float) and 0 <= value < math.inf else None


def to_answer(generation: Generation, rid: str, seconds: float) -> dict[str, Any]:
    """SGLang's JSON answer for a turn, without text."""
    tokens = generation.token_ids.tolist()
    reason: dict[str, Any] = {"type": generation.finish_reason}
    if generation.finish_reason == "length":
        reason["length"] = len(tokens)
    elif tokens:
        reason["matched"] = tokens[-1]
    spans = _spans(generation.weight_versions)
    # The first is an addition of ours; SGLang has the second if its metrics are on.
    known = {"prefix_version": generation.prefix_version, "queue_time": generation.queue_seconds}
    return {
        "text": "",
        "output_ids": tokens,
        "meta_info": {
            "id": rid,
            "finish_reason": reason,
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": len(tokens),
            "cached_tokens": generation.cached_tokens,
            "output_token_logprobs": [
                (float(logprob), token, None) for logprob, token in zip(generation.logprobs, tokens, strict=True)
            ],
            "weight_version": spans[-1]["version"] if spans else "0",
            "weight_versions": spans,
            **{name: value for name, value in known.items() if value is not None},
            "e2e_latency": seconds,
        },
    }


def _spans(versions: npt.NDArray[np.int32]) -> list[dict[str, Any]]:
    starts = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist()] if len(versions) else []
    ends = [*starts[1:], len(versions)]
    return [
        {"version": str(int(versions[start])), "start": start, "end": end}
        for start, end in zip(starts, ends, strict=bool(starts))
    ]

"""Reads the body of a client's request to `/generate`.

Invariant: any bytes give a `GenerateRequest` or a `RequestError` that names the field; no part of a request is silently
ignored. `json` holds the interpreter lock for a whole document, 7 ms for a MiB of ids. So the ids, the only large part
of a normal body, are parsed in pieces, and other threads run in between.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from rollout_service.config.sampling import LARGEST_INT, Sampling
from rollout_service.policy.base import RequestError

_PIECE = 1 << 15
"""Characters that `json` parses at a time, in about 0.3 ms."""

_REST = 1 << 16
"""Most characters of a body besides its ids."""

_IDS = re.compile(r'(?<!\\)"input_ids"\s*:\s*\[')
_NEXT_IS = re.compile(r"\s*(.?)", re.DOTALL)

_TEXT_PARAMETERS = {"skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "stop"}
"""Sampling parameters about text, which is neither sent nor returned here. `stop` is allowed if empty."""

_FIELDS = {"input_ids", "sampling_params", "rid"}

_IGNORED_FIELDS = {"return_logprob", "return_text_in_logprobs", "log_metrics", "incremental_streaming_output"}
"""Fields without effect: log-probs are always returned, text never."""

_NOT_AN_ID = "input_ids must be a list of token ids, not empty, or a list of such lists"


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """Prompts to continue, all with the same sampling."""

    prompts: list[npt.NDArray[np.int32]]
    """Each int32[n], n at least 1."""
    rids: list[str | None]
    """The client's request id of each prompt."""
    sampling: Sampling
    is_batch: bool
    """Whether the answer is a list, even for a single prompt."""


def read_request(body: bytes, most_prompts: int) -> GenerateRequest:
    """The request in the body. Takes milliseconds per MiB, so do not call it on an event loop.

    Raises:
        RequestError: it is not supported here, or has more than `most_prompts` prompts. The message names the field.
    """
    try:
        text = body.decode()
        found = _IDS.search(text)
        if found is None:
            payload, prompts, is_batch = _read_rest(text), None, False
        else:
            prompts, is_batch, end = _read_prompts(text, found.end(), most_prompts)
            payload = _read_rest(text[: found.end()] + text[end:])
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict) or "input_ids" not in payload:
        raise RequestError("input_ids is missing: this endpoint takes token ids, not text")
    if prompts is None or payload["input_ids"] != []:  # the field occurs twice, or is no list
        raise RequestError(_NOT_AN_ID)
    for field in payload.keys() - _FIELDS - _IGNORED_FIELDS:
        if payload[field] and not (field == "logprob_start_len" and payload[field] == -1):
            raise RequestError(f"{field[:100]} is not supported here")
    return GenerateRequest(prompts, _rids(payload.get("rid"), len(prompts)), _sampling(payload), is_batch)


def _read_rest(text: str) -> Any:
    if len(text) > _REST:
        raise RequestError(f"the body has {len(text)} characters besides its input_ids; at most {_REST} are allowed")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number with more digits than Python parses
        raise RequestError(f"the body has a number that cannot be read: {error}") from None


def _read_prompts(text: str, start: int, most: int) -> tuple[list[npt.NDArray[np.int32]], bool, int]:
    """The prompts of the list that begins before `start`, whether they are a batch, and the position of the closing
    bracket."""
    if _next(text, start)[0] != "[":
        end = text.find("]", start)
        return [_read_ids(text, start, end)], False, end
    prompts: list[npt.NDArray[np.int32]] = []
    mark = ","
    while mark == ",":
        if len(prompts) == most:
            raise RequestError(f"input_ids has more than {most} prompts: send them in several requests")
        mark, start = _next(text, start)
        if mark != "[":
            raise RequestError(_NOT_AN_ID)
        end = text.find("]", start)
        prompts.append(_read_ids(text, start, end))
        mark, start = _next(text, end + 1)
    if mark != "]":
        raise RequestError(_NOT_AN_ID)
    return prompts, True, start - 1


def _next(text: str, start: int) -> tuple[str, int]:
    """The next character that is not white space, and the position after it."""
    found = _NEXT_IS.match(text, start)
    assert found is not None
    return found[1], found.end()


def _read_ids(text: str, start: int, end: int) -> npt.NDArray[np.int32]:
    """int32[n], the ids between `start` and the bracket at `end`; `end` is -1 if there is no bracket."""
    parts = []
    while end >= 0:
        comma = text.find(",", start + _PIECE, end)
        cut = end if comma < 0 else comma
        try:
            ids = json.loads(f"[{text[start:cut]}]")
        except ValueError:
            break
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > LARGEST_INT:
            break
        parts.append(np.array(ids, dtype=np.int32))
        if cut == end:
            return np.concatenate(parts)
        start = cut + 1
        time.sleep(0)  # lets a thread that waits for the interpreter lock run
    raise RequestError(_NOT_AN_ID)


def _rids(given: Any, n: int) -> list[str | None]:
    rids = given if isinstance(given, list) else [given] * n
    if len(rids) != n or not all(rid is None or (isinstance(rid, str) and rid.isprintable()) for rid in rids):
        raise RequestError("rid must be text, or a list of as many as there are prompts")
    return rids


def _sampling(payload: dict[str, Any]) -> Sampling:
    given = payload.get("sampling_params") or {}
    if not isinstance(given, dict):
        raise RequestError("sampling_params must be one object, for all prompts of a batch")
    if given.get("stop") or given.get("n") not in (None, 1):
        raise RequestError("sampling_params.stop and n are not supported here: use stop_token_ids, and ask n times")
    chosen = {
        name: value for name, value in given.items() if name not in _TEXT_PARAMETERS | {"n"} and value is not None
    }
    chosen.setdefault("max_new_tokens", 128)  # SGLang's default
    try:
        return Sampling.model_validate(chosen)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise RequestError(f"sampling_params.{str(first['loc'][0])[:100]}: {message}") from None
